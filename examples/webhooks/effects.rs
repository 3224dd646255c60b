//! The file that proves what was done: a line for each effect, whoever is killed in between.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

/// Several processes may append to the same file.
pub(crate) struct Effects {
    file: File,
    path: PathBuf,
    /// Why it could not be written.
    failed: watch::Sender<Option<String>>,
}

impl Effects {
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file =
            file.map_err(|error| format!("opening --effects {}: {error}", path.display()))?;
        Ok(Self { file, path: path.to_owned(), failed: watch::Sender::new(None) })
    }

    /// The line of one effect; once that failed, nothing is worth going on for.
    pub(crate) fn append(&self, id: &str, attempt: u32) -> io::Result<()> {
        self.write(id, attempt).inspect_err(|error| {
            let why = format!("writing --effects {}: {error}", self.path.display());
            self.failed.send_replace(Some(why));
        })
    }

    /// Waits until it could not be written, if ever; with the reason.
    pub(crate) async fn failed(&self) -> String {
        let mut failed = self.failed.subscribe();
        let why = failed.wait_for(Option::is_some).await;
        why.ok().and_then(|why| why.clone()).unwrap_or_default()
    }

    /// One write, so that no kill leaves half a line and no process writes into another's.
    fn write(&self, id: &str, attempt: u32) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let line = format!("{id} {attempt} {} {now}\n", process::id());
        let written = (&self.file).write(line.as_bytes())?;
        if written == line.len() {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::WriteZero, "a line was written in part: disk full?"))
    }
}
