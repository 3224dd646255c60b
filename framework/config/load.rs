//! From files and variables to a configuration that was checked: the story of loading.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IntoDeserializer;

use super::layer::{Layer, Layers};
use super::problem::Problem;
use super::{Config, Problems, Properties, Secret, Url, check, env, file};

/// No configuration or secret is longer; what is, is another file by mistake.
const FILE_BYTES_MAX: u64 = 1 << 20;

impl Config {
    /// Reads one file and the variables of the environment that begin with `REDELIVER__`.
    ///
    /// ```
    /// use redeliver::config::Config;
    ///
    /// let path = std::env::temp_dir().join(format!("redeliver-load-{}.toml", std::process::id()));
    /// std::fs::write(&path, "[service]\nrestart_max = 3")?;
    /// let problems = Config::load(&path).expect_err("a key is misspelt");
    /// let place = format!("{}:2:1", path.display());
    /// assert_eq!(problems.list()[0].origin().map(|origin| origin.to_string()), Some(place));
    /// assert!(problems.to_string().contains("restarts_max"), "{problems}");
    /// # std::fs::remove_file(path)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Every problem at once, with its place and what to do.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Problems> {
        Self::load_all(&[path])
    }

    /// Reads several files, each over those before it, and the environment over all.
    ///
    /// ```
    /// use redeliver::config::Config;
    ///
    /// let folder = std::env::temp_dir().join(format!("redeliver-{}", std::process::id()));
    /// std::fs::create_dir_all(&folder)?;
    /// let (base, ours) = (folder.join("base.toml"), folder.join("ours.toml"));
    /// std::fs::write(&base, "service = { name = \"billing\", restarts_max = 3 }")?;
    /// std::fs::write(&ours, "service = { restarts_max = 9 }")?;
    ///
    /// assert_eq!(Config::load(&base)?.service.restarts_max, 3);
    /// let both = Config::load_all(&[&base, &ours])?;
    /// assert_eq!((both.service.name().as_str(), both.service.restarts_max), ("billing", 9));
    /// # std::fs::remove_dir_all(folder)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Every problem at once, with its place and what to do.
    pub fn load_all(paths: &[impl AsRef<Path>]) -> Result<Self, Problems> {
        let ours =
            |name: &std::ffi::OsString| name.as_encoded_bytes().starts_with(env::PREFIX.as_bytes());
        let variables = std::env::vars_os().filter(|(name, _)| ours(name));
        // A value that is no UTF-8 fits no key; its replacement characters make that visible where it matters.
        Self::load_all_with(paths, variables.map(|(name, value)| (lossy(name), lossy(value))))
    }

    /// Like [`load_all`](Self::load_all), with an environment that is handed in.
    ///
    /// ```
    /// use redeliver::config::Config;
    ///
    /// let no_files: [&str; 0] = [];
    /// let config = Config::load_all_with(&no_files, [("REDELIVER__BROKERS__MAIN__KIND", "memory")])?;
    /// assert!(config.brokers.contains_key("main"));
    /// # Ok::<(), redeliver::config::Problems>(())
    /// ```
    ///
    /// # Errors
    /// Every problem at once, with its place and what to do.
    pub fn load_all_with<N: AsRef<str>, V: AsRef<str>>(
        paths: &[impl AsRef<Path>],
        environment: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let mut texts = Vec::new();
        for path in paths {
            match read_file(path.as_ref()) {
                Ok(text) => texts.push((Some(path.as_ref().to_owned()), text)),
                Err(said) => {
                    problems.push(Problem::new("", format!("{}: {said}", path.as_ref().display())))
                }
            }
        }
        layered(texts, environment, problems)
    }

    /// Reads one text and no environment.
    ///
    /// ```
    /// use redeliver::config::Config;
    ///
    /// assert_eq!(Config::from_toml("")?, Config::default());
    /// let problems = Config::from_toml("[subscriptions.orders]\nbroker = \"main\"\nqueue = \"orders\"").unwrap_err();
    /// assert_eq!(problems.list()[0].path(), "subscriptions.orders.broker", "there is no broker `main`");
    /// # Ok::<(), redeliver::config::Problems>(())
    /// ```
    ///
    /// # Errors
    /// Every problem at once, with its place and what to do.
    pub fn from_toml(text: &str) -> Result<Self, Problems> {
        let no_environment: [(&str, &str); 0] = [];
        layered(vec![(None, text.to_owned())], no_environment, Vec::new())
    }

    /// Checks a configuration that was made in code for contradictions. Loading does the same, and more.
    ///
    /// ```
    /// use redeliver::config::{Broker, BrokerKind, Config};
    ///
    /// let mut config = Config::default();
    /// config.brokers.insert("main".to_owned(), Broker { kind: BrokerKind::Rabbitmq, ..Broker::default() });
    /// let problems = config.check().expect_err("nobody knows where it is");
    /// assert_eq!(problems.list()[0].path(), "brokers.main.url");
    /// ```
    ///
    /// # Errors
    /// Every problem at once; without places, since nothing was written.
    pub fn check(&self) -> Result<(), Problems> {
        Problems::none(check::all(self, &Layers::default()))
    }
}

fn layered<N: AsRef<str>, V: AsRef<str>>(
    texts: Vec<(Option<PathBuf>, String)>,
    environment: impl IntoIterator<Item = (N, V)>,
    mut problems: Vec<Problem>,
) -> Result<Config, Problems> {
    let unread = problems.len();
    let mut layers = Layers::default();
    for (name, text) in texts {
        let (layer, found) = file::read(name, &text);
        layers.push(layer);
        problems.extend(found);
    }
    lay_environment(environment, &mut layers, &mut problems);
    // A text that could not be read at all leaves gaps that are not worth a word each.
    if problems.iter().skip(unread).any(|problem| problem.path().is_empty()) || unread > 0 {
        return Err(Problems::sorted(problems));
    }
    let mut config = merged(&layers, &mut problems);
    read_secrets(&mut config, &mut problems);
    problems.extend(check::all(&config, &layers));
    let located = problems.into_iter().map(|problem| match problem.origin {
        Some(_) => problem,
        None => layers.locate(problem),
    });
    Problems::none(located.collect()).map(|()| config)
}

/// Lays every variable of ours over what is there, in the order of their names.
fn lay_environment<N: AsRef<str>, V: AsRef<str>>(
    environment: impl IntoIterator<Item = (N, V)>,
    layers: &mut Layers,
    problems: &mut Vec<Problem>,
) {
    let files = layers.merged().unwrap_or_default();
    let mut variables: Vec<_> = environment.into_iter().collect();
    variables.sort_by(|(a, _), (b, _)| a.as_ref().cmp(b.as_ref()));
    for (name, value) in &variables {
        match env::read(name.as_ref(), value.as_ref(), &files) {
            Some(Ok(layer)) => layers.push(layer),
            Some(Err(problem)) => {
                layers.push(Layer { faulty: vec![problem.path().to_owned()], ..Layer::default() });
                problems.push(*problem);
            }
            None => {}
        }
    }
}

fn merged(layers: &Layers, problems: &mut Vec<Problem>) -> Config {
    let config = layers.merged().map_err(|error| error.to_string()).and_then(|table| {
        let table = toml::Value::Table(table).into_deserializer();
        Config::deserialize(table).map_err(|error| error.message().to_owned())
    });
    config.unwrap_or_else(|said| {
        // Every layer was read alone before, so only a fault of ours comes here; say it all the same.
        problems.push(Problem::new("", format!("the layers do not fit together: {said}")));
        Config::default()
    })
}

/// Reads the files whose text is a secret, and puts passwords into their urls.
fn read_secrets(config: &mut Config, problems: &mut Vec<Problem>) {
    for (name, broker) in &mut config.brokers {
        let at = format!("brokers.{name}");
        let url = (&mut broker.url, &broker.url_file);
        let password = (&mut broker.password, &broker.password_file);
        problems.extend(complete_url(&at, url, password));
        problems.extend(read_properties(&at, &mut broker.properties));
    }
    for (name, store) in &mut config.stores {
        let url = (&mut store.url, &store.url_file);
        let password = (&mut store.password, &store.password_file);
        problems.extend(complete_url(&format!("stores.{name}"), url, password));
    }
}

fn complete_url(
    at: &str,
    (url, url_file): (&mut Option<Url>, &Option<PathBuf>),
    (password, password_file): (&mut Option<Secret>, &Option<PathBuf>),
) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(text) = secret_of(at, "url", url.is_some(), url_file, &mut problems) {
        *url = Some(Url::new(text));
    }
    if let Some(text) = secret_of(at, "password", password.is_some(), password_file, &mut problems)
    {
        *password = Some(Secret::new(text));
    }
    // The password is taken, so that it is in one place only: the url that the client is given.
    if let (Some(address), Some(secret)) = (url.as_ref(), password.take()) {
        match address.with_password(&secret) {
            Some(complete) => *url = Some(complete),
            None => problems.push(Problem::new(
                format!("{at}.password"),
                "has no place in the url, which has a password already or no `://`; give one of the two",
            )),
        }
    }
    problems
}

/// The text of `KEY_file`, if that is given and KEY is not.
fn secret_of(
    at: &str,
    key: &str,
    is_given: bool,
    path: &Option<PathBuf>,
    problems: &mut Vec<Problem>,
) -> Option<String> {
    let path = path.as_deref()?;
    let here = format!("{at}.{key}_file");
    if is_given {
        problems.push(Problem::new(here, format!("is given, and {key} too; remove one of them")));
        return None;
    }
    read_secret(&here, path, problems)
}

/// A property whose name ends in `_file` becomes the property without the ending.
fn read_properties(at: &str, properties: &mut Properties) -> Vec<Problem> {
    let mut problems = Vec::new();
    let names: Vec<String> =
        properties.names().filter(|name| name.ends_with("_file")).map(str::to_owned).collect();
    for name in names {
        let here = format!("{at}.properties.{name}");
        let (Some(path), Some(plain)) = (properties.remove(&name), name.strip_suffix("_file"))
        else {
            continue;
        };
        if properties.expose(plain).is_some() {
            problems
                .push(Problem::new(here, format!("is given, and {plain} too; remove one of them")));
        } else if let Some(text) = read_secret(&here, Path::new(path.expose()), &mut problems) {
            properties.set(plain, text);
        }
    }
    problems
}

fn read_secret(here: &str, path: &Path, problems: &mut Vec<Problem>) -> Option<String> {
    match read_file(path) {
        // Editors and `echo` end a file with a newline, which belongs to no secret.
        Ok(text) => Some(text.trim_end_matches(['\r', '\n']).to_owned()),
        Err(said) => {
            problems.push(Problem::new(here, format!("names {}, but {said}", path.display())));
            None
        }
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    let file = File::open(path).map_err(|error| format!("it cannot be opened: {error}"))?;
    let mut bytes = Vec::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("it cannot be read: {error}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err("it is longer than 1MiB, so it is hardly the right file".to_owned());
    }
    String::from_utf8(bytes).map_err(|_| "it is no UTF-8 text".to_owned())
}

fn lossy(text: std::ffi::OsString) -> String {
    text.to_string_lossy().into_owned()
}
