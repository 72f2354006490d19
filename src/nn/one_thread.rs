//! Keeps candle's own thread pool from starting.
//!
//! candle 0.11 splits element-wise work from 65 536 numbers on over a pool of spinning threads, one per physical core,
//! and its size can be set only by environment variables that it reads once. A learner beside a control loop must not
//! have more runnable threads than cores it was given.
#![allow(unsafe_code, reason = "setting an environment variable is unsafe while other threads may read it")]

/// Limits candle to the calling thread, for the rest of the process; `false` where it was too late or not possible.
///
/// Call it first thing in `main`: it acts only while the process has a single thread. A value that the user has set
/// stays. Off Linux nothing is done.
pub fn hold_candle_to_one_thread() -> bool {
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count);
    if !matches!(threads, Ok(1)) {
        return false;
    }
    for name in ["CANDLE_NUM_THREADS", "RAYON_NUM_THREADS"] {
        if std::env::var_os(name).is_none() {
            // SAFETY: this is the only thread of the process, as just counted, so nobody reads the environment now.
            unsafe { std::env::set_var(name, "1") };
        }
    }
    // candle reads the variable when the pool is made.
    candle_core::utils::barrier_pool().n_workers() == 0
}
