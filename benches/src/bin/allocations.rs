//! Counts the heap allocations of the in-memory path: `allocations COUNT` prints how many were made
//! for the last COUNT messages of twice as many, so that what is made once is not counted.

use std::alloc::System;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use redeliver_benches::memory_path;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations before the first message that counts.
static BEFORE: AtomicUsize = AtomicUsize::new(0);

fn made() -> usize {
    let stats = HEAP.stats();
    stats.allocations + stats.reallocations
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count: u64 = std::env::args().nth(1).ok_or("use: allocations COUNT")?.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let watch = move |number| {
            if number == count {
                BEFORE.store(made(), Ordering::Relaxed);
            }
        };
        let loaded = memory_path::load(2 * count, Arc::new(watch)).await?;
        loaded.drain().await?;
        println!("{}", made() - BEFORE.load(Ordering::Relaxed));
        std::process::exit(0);
    })
}
