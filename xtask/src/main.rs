//! Chores that need more than one cargo command: `cargo xtask TASK`.

mod codegen;

fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("codegen") => codegen::run(),
        _ => anyhow::bail!("usage: cargo xtask codegen"),
    }
}
