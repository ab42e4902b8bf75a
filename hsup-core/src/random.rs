//! Random numbers from the kernel, for ids and jitter.

/// 64 random bits.
pub fn u64() -> u64 {
    getrandom::u64().expect("the kernel gives random bits from early boot on")
}
