//! The file that proves what was done: a line for each effect, whoever is killed in between.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

/// Several processes may append to the same file.
pub(crate) struct Effects {
    file: File,
}

impl Effects {
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(|error| format!("opening {}: {error}", path.display()))?;
        Ok(Self { file })
    }

    /// One write, so that no kill leaves half a line and no process writes into another's.
    pub(crate) fn append(&self, id: &str, attempt: u32) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let line = format!("{id} {attempt} {} {now}\n", process::id());
        let written = (&self.file).write(line.as_bytes())?;
        if written == line.len() {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::WriteZero, "the effect was written in part: disk full?"))
    }
}
