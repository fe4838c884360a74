//! Lines that are issued, and what arrived of them.

#![allow(dead_code)] // each test uses a part of it

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

/// Line `n`: its bytes can be told from its number alone.
pub fn line(n: u64) -> String {
    format!(
        "line {n:08} {:016x} {}",
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        "x".repeat((n % 40) as usize)
    )
}

/// Appends lines to a file, in the order of their numbers.
pub struct Writer {
    file: std::fs::File,
    /// The number of the next line: how many there are.
    pub next: u64,
}

impl Writer {
    /// A new file.
    pub fn create(path: &Path) -> Self {
        Self { file: std::fs::File::create(path).unwrap(), next: 0 }
    }

    /// `count` more lines, in one write.
    pub fn write(&mut self, count: u64) {
        let mut text = String::new();
        for n in self.next..self.next + count {
            text.push_str(&line(n));
            text.push('\n');
        }
        self.next += count;
        self.file.write_all(text.as_bytes()).unwrap();
    }
}

/// Each of the lines below `total` is there once, and nothing else.
pub fn check_lines(place: &str, total: u64, stored: impl Iterator<Item = Vec<u8>>) {
    let mut seen: HashMap<Vec<u8>, u64> = HashMap::new();
    for line in stored {
        *seen.entry(line).or_default() += 1;
    }
    let doubled: Vec<_> = seen.iter().filter(|(_, count)| **count > 1).collect();
    assert!(
        doubled.is_empty(),
        "{} doubled in {place}, some of them: {:?}",
        doubled.len(),
        &doubled[..doubled.len().min(5)]
    );
    let lost: Vec<u64> = (0..total).filter(|n| !seen.contains_key(line(*n).as_bytes())).collect();
    assert!(
        lost.is_empty(),
        "{} lost in {place}, first {:?}",
        lost.len(),
        &lost[..lost.len().min(5)]
    );
    assert_eq!(seen.len() as u64, total, "{place} holds what nobody wrote");
}
