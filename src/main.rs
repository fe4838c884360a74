//! The program: see the library.

/// Batches are made on one thread and freed on another, all day long. The system's allocator keeps
/// more and more of that; this one gives it back, and takes less time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    aqueduct::cli::main()
}
