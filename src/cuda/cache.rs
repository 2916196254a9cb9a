//! Compiled modules on disk, so that a process compiles only what no earlier one has compiled.
//!
//! A cache that cannot be read or written costs time and nothing else: no failure here is an error.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use super::fnv::Fnv;

/// The first bytes of a file: then the hash of the rest, and the rest.
const MAGIC: &[u8] = b"batchformer 1\n";
const HEADER: usize = MAGIC.len() + size_of::<u128>();

/// `$XDG_CACHE_HOME/batchformer`, or `~/.cache/batchformer`; the former only if it is an absolute path.
pub fn folder() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(caches.join("batchformer"))
}

/// The module that was written under that hash, if it is complete.
pub fn read(hash: Fnv) -> Option<Vec<u8>> {
    unpack(fs::read(folder()?.join(name(hash))).ok()?)
}

/// Written under another name first, so that no process reads half of it; if two write, the later wins, with equal
/// bytes.
pub fn write(hash: Fnv, module: &[u8]) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(folder) = folder() else { return };
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let unfinished = folder.join(format!(".{}-{}-{count}", name(hash), process::id()));
    if try_write(&folder, &unfinished, &folder.join(name(hash)), module).is_err() {
        _ = fs::remove_file(unfinished);
    }
}

fn try_write(folder: &Path, unfinished: &Path, finished: &Path, module: &[u8]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut file = OpenOptions::new().write(true).create_new(true).open(unfinished)?;
    file.write_all(&pack(module))?;
    file.flush()?;
    fs::rename(unfinished, finished)
}

fn name(hash: Fnv) -> String {
    format!("{}.cubin", hash.hex())
}

fn pack(module: &[u8]) -> Vec<u8> {
    let checksum = Fnv::new().bytes(module).finish().to_le_bytes();
    [MAGIC, &checksum, module].concat()
}

fn unpack(mut file: Vec<u8>) -> Option<Vec<u8>> {
    let module = file.get(HEADER..)?;
    let whole = file[..HEADER] == pack(module)[..HEADER];
    file.drain(..HEADER);
    (whole && !file.is_empty()).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back_and_nothing_damaged_does() {
        let packed = pack(b"a module");
        assert_eq!(unpack(packed.clone()).as_deref(), Some(&b"a module"[..]));
        for at in 0..packed.len() {
            let mut damaged = packed.clone();
            damaged[at] ^= 1;
            assert_eq!(unpack(damaged), None, "byte {at}");
            assert_eq!(unpack(packed[..at].to_vec()), None, "{at} bytes");
        }
        assert_eq!(unpack([packed, vec![0]].concat()), None);
        assert_eq!(unpack(pack(b"")), None);
    }
}
