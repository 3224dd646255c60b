//! What is said to whoever looks: a line on standard error. Where nobody reads it a job goes on all the same, which
//! `eprintln!` would end.

macro_rules! tell {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($line)*);
    }};
}

pub(crate) use tell;
