//! What the programs of the benchmark share. `./benches/run` starts them; nothing here is meant to
//! be used from elsewhere.

pub mod memory_path;
#[cfg(feature = "servers")]
pub mod shared;
