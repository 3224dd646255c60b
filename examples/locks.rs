//! Two processes pay into one account, one at a time; one of them is killed in the middle.
//!
//! `REDIS_URL=redis://127.0.0.1:6379 cargo run --example locks`
//!
//! A payment reads the balance, thinks, and writes it back: without the lock, payments of one
//! process would overwrite those of the other.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redeliver::Service;
use redeliver::config::Config;

type Error = Box<dyn std::error::Error>;

const PAYMENTS: usize = 100;

#[actix::main]
async fn main() -> Result<(), Error> {
    match std::env::args().nth(1) {
        Some(account) => pay(Path::new(&account)).await,
        None => {
            // Before any process is started: without Redis nobody can pay.
            connect().await?.stop().await;
            watch()
        }
    }
}

async fn connect() -> Result<Service, Error> {
    let redis = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".into());
    let config =
        format!("[service]\nstartup_max = '5s'\n[stores.main]\nkind = 'redis'\nurl = '{redis}'");
    let started = Service::builder(Config::from_toml(&config)?).start().await;
    started.map_err(|error| format!("this example needs a Redis, at REDIS_URL: {error}").into())
}

/// A process that pays, and says so after each payment.
async fn pay(account: &Path) -> Result<(), Error> {
    let service = connect().await?;
    let locks = service.locks("main")?;
    for _ in 0..PAYMENTS {
        let key = account.display().to_string();
        let guard = locks.acquire(key).lease(Duration::from_secs(1)).wait(Duration::from_secs(30));
        let guard = guard.await?;
        let balance: usize = std::fs::read_to_string(account)?.trim().parse()?;
        tokio::time::sleep(Duration::from_millis(5)).await;
        // Whoever may have slept past its lease does not write.
        if let Some(loss) = guard.loss() {
            return Err(format!("the lock is lost: {loss}").into());
        }
        std::fs::write(account, (balance + 1).to_string())?;
        println!("paid");
        guard.release().await?;
    }
    service.stop().await;
    Ok(())
}

/// Starts two processes, kills one, and compares what they said with what the account says.
fn watch() -> Result<(), Error> {
    let account = std::env::temp_dir().join(format!("redeliver-account-{}", std::process::id()));
    std::fs::write(&account, "0")?;
    let (mut first, mut second) = (start(&account)?, start(&account)?);
    let killed = count(&mut first, PAYMENTS / 4)?;
    first.kill()?;
    let rest = BufReader::new(first.stdout.take().ok_or("no output")?).lines().count();
    first.wait()?;
    let lived = count(&mut second, PAYMENTS)?;
    let ended = second.wait()?;
    let balance: usize = std::fs::read_to_string(&account)?.trim().parse()?;
    std::fs::remove_file(&account)?;
    let said = killed + rest + lived;
    // The kill may have come between a payment and the word that it was made.
    if !ended.success() || lived != PAYMENTS || !(said..=said + 1).contains(&balance) {
        return Err(format!("{said} payments were made, and the balance is {balance}").into());
    }
    println!("one was killed, and no payment is missing: the balance is right");
    Ok(())
}

fn start(account: &PathBuf) -> Result<Child, Error> {
    let program = std::env::current_exe()?;
    Ok(Command::new(program).arg(account).stdout(Stdio::piped()).spawn()?)
}

/// Waits for so many payments, or the end.
fn count(process: &mut Child, payments: usize) -> Result<usize, Error> {
    let output = process.stdout.as_mut().ok_or("no output")?;
    let mut count = 0;
    let mut byte = [0];
    while count < payments && std::io::Read::read(output, &mut byte)? == 1 {
        count += usize::from(byte == *b"\n");
    }
    Ok(count)
}
