//! Lua scripts, which Redis runs whole or not at all as far as others can see.

use redis::Cmd;

/// A script, known to the server by its hash.
pub struct Script {
    text: &'static str,
    hash: String,
}

impl Script {
    /// A script of this text.
    pub fn new(text: &'static str) -> Self {
        Self { text, hash: redis::Script::new(text).get_hash().to_owned() }
    }

    /// A call with these keys, to which arguments are added.
    pub fn call(&self, keys: &[&str]) -> Cmd {
        self.call_sized(keys, 16, 512)
    }

    /// [`Script::call`] with room for so many arguments and bytes of them.
    pub fn call_sized(&self, keys: &[&str], args: usize, bytes: usize) -> Cmd {
        let keys_bytes: usize = keys.iter().map(|key| key.len()).sum();
        let mut cmd = Cmd::with_capacity(args + keys.len() + 3, bytes + keys_bytes + 64);
        cmd.arg("EVALSHA").arg(&self.hash).arg(keys.len());
        for key in keys {
            cmd.arg(key);
        }
        cmd
    }

    /// What makes the server know it.
    pub(super) fn load(&self) -> Cmd {
        let mut cmd = redis::cmd("SCRIPT");
        cmd.arg("LOAD").arg(self.text);
        cmd
    }
}
