//! Brokers of a test's own, that may be configured, killed and started again, and Kafka's own tools.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::lab::unique;

/// A broker of a test's own; killed in the end.
pub(crate) struct Node {
    folder: PathBuf,
    /// Where it listens without TLS.
    pub(crate) url: String,
}

impl Node {
    pub(crate) fn start(name: &str) -> Self {
        Self::begin(name, "", None).ready()
    }

    /// With further lines in its configuration.
    pub(crate) fn configured(name: &str, lines: &str) -> Self {
        Self::begin(name, lines, None).ready()
    }

    /// Three that know one another; none is ready before the others are there.
    pub(crate) fn cluster() -> [Self; 3] {
        let ports: [(u16, u16); 3] = std::array::from_fn(|_| (free_port(), free_port()));
        let voters: Vec<_> =
            (1..).zip(ports).map(|(id, (_, port))| format!("{id}@127.0.0.1:{port}")).collect();
        let id = format!("r{:021}", std::process::id());
        let starts = [0, 1, 2].map(|index| {
            let (port, controller) = ports[index];
            let lines = format!(
                "node.id={}\ncontroller.quorum.voters={}\n\
                 listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
                 advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
                 offsets.topic.replication.factor=3\nmin.insync.replicas=2\n",
                index + 1,
                voters.join(","),
            );
            Self::begin("cluster", &lines, Some(&id))
        });
        starts.map(Starting::ready)
    }

    fn begin(name: &str, lines: &str, cluster: Option<&str>) -> Starting {
        let folder = std::env::temp_dir().join(unique(name));
        fs::create_dir_all(&folder).expect("the folder can be made");
        fs::write(folder.join("extra.conf"), lines).expect("the configuration can be written");
        if let Some(id) = cluster {
            fs::write(folder.join("cluster"), id).expect("the folder can be written");
        }
        let node = Self { folder, url: String::new() };
        let child = node.script("start").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Starting { child: child.expect("bash is there"), node }
    }

    pub(crate) fn kill(&self) {
        self.run("kill");
    }

    pub(crate) fn start_again(&self) {
        self.run("start");
    }

    fn script(&self, command: &str) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/kafka.sh");
        let mut bash = Command::new("bash");
        bash.arg(script).arg(command).arg(&self.folder);
        bash
    }

    fn run(&self, command: &str) {
        let ran = self.script(command).output().expect("bash is there");
        assert!(ran.status.success(), "{command}: {}", String::from_utf8_lossy(&ran.stderr));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Whatever comes of it: a panic in here would hide the one that brought us here.
        let _ = self.script("kill").output();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// One that is not ready yet.
struct Starting {
    child: Child,
    node: Node,
}

impl Starting {
    fn ready(self) -> Node {
        let Self { child, mut node } = self;
        let ran = child.wait_with_output().expect("it is ours");
        assert!(ran.status.success(), "start: {}", String::from_utf8_lossy(&ran.stderr));
        let printed = String::from_utf8(ran.stdout).expect("it prints text");
        let listens = fs::read_to_string(node.folder.join("server.conf")).unwrap_or_default();
        // The last line of a name counts, and the tests' own comes last.
        let own = listens.lines().rev().find_map(|line| {
            let listeners = line.strip_prefix("listeners=PLAINTEXT://")?;
            listeners.split(',').next().map(str::to_owned)
        });
        let told = printed.lines().find_map(|line| line.strip_prefix("KAFKA_URL="));
        node.url = own.or(told.map(str::to_owned)).expect("it listens somewhere");
        node
    }
}

/// A port that nobody listens on at the moment.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there are ports");
    listener.local_addr().expect("it is bound").port()
}

/// What one of Kafka's own tools prints, a class of the jars that the broker runs from.
pub(crate) fn tool(class: &str, arguments: &[&str]) -> String {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".servers/kafka");
    let home = std::env::var_os("REDELIVER_KAFKA_HOME").map_or(own, PathBuf::from);
    let mut java = Command::new("java");
    java.args(["-XX:TieredStopAtLevel=1", "-cp"]).arg(home.join("libs/*")).arg(class);
    let ran = java.args(arguments).output().expect("java is there");
    let told = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{class}: {told}{}", String::from_utf8_lossy(&ran.stderr));
    told
}
