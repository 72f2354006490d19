//! Allocator thresholds for the learner's tensors.
#![allow(unsafe_code, reason = "mallopt has no safe wrapper")]

/// Keeps the C allocator from giving large blocks back to the system after every tensor: half of the time of an
/// update would go into page faults. Call once, at the start of the process. Does nothing without glibc.
pub fn tune_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (parameter, bytes) in
        [(libc::M_MMAP_THRESHOLD, 128 << 20), (libc::M_TRIM_THRESHOLD, 512 << 20), (libc::M_TOP_PAD, 64 << 20)]
    {
        // SAFETY: mallopt takes two integers, has no preconditions and answers 0 when it refuses.
        let accepted = unsafe { libc::mallopt(parameter, bytes) };
        if accepted == 0 {
            log::debug!("the allocator refused threshold {parameter}");
        }
    }
}
