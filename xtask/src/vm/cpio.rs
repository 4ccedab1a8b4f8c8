//! Archives as the kernel unpacks them into its first file system: cpio, format `newc`
//! (Documentation/driver-api/early-userspace/buffer-format.rst of the kernel).

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::{Path, PathBuf},
};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Writes entries one after the other; all belong to root, so that none of this needs root.
pub(super) struct Archive<W> {
    to: W,
    /// Number of the next entry: the kernel takes equal ones for links.
    inode: u32,
    folders: BTreeSet<PathBuf>,
}

impl<W: Write> Archive<W> {
    pub(super) const fn new(to: W) -> Self {
        Self { to, inode: 1, folders: BTreeSet::new() }
    }

    /// A folder and those above it; again is fine.
    pub(super) fn folder(&mut self, path: &Path) -> io::Result<()> {
        let name = path.strip_prefix("/").unwrap_or(path);
        if name.as_os_str().is_empty() || self.folders.contains(name) {
            return Ok(());
        }
        if let Some(above) = name.parent() {
            self.folder(above)?;
        }
        self.folders.insert(name.to_owned());
        self.entry(name, FOLDER, [0, 0], &[])
    }

    /// A file that can be read and run by everyone.
    pub(super) fn file(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        let name = self.placed(path)?;
        self.entry(&name, PROGRAM, [0, 0], content)
    }

    pub(super) fn character_device(&mut self, path: &Path, major: u32, minor: u32) -> io::Result<()> {
        let name = self.placed(path)?;
        self.entry(&name, CHARACTER_DEVICE, [major, minor], &[])
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.entry(Path::new("TRAILER!!!"), 0, [0, 0], &[])?;
        self.to.flush()
    }

    /// The name in the archive, once its folder is there.
    fn placed(&mut self, path: &Path) -> io::Result<PathBuf> {
        let name = path.strip_prefix("/").unwrap_or(path);
        if let Some(above) = name.parent() {
            self.folder(above)?;
        }
        Ok(name.to_owned())
    }

    fn entry(&mut self, name: &Path, mode: u32, device: [u32; 2], content: &[u8]) -> io::Result<()> {
        let name = name.as_os_str().as_encoded_bytes();
        let size = u32::try_from(content.len()).map_err(|_| io::Error::other("a file of more than 4 GiB"))?;
        let name_size = name.len() as u32 + 1;
        write!(self.to, "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}", self.inode, 0, 0, 1, 0)?;
        write!(self.to, "{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}", 0, 0, device[0], device[1], 0)?;
        self.to.write_all(name)?;
        // The name ends with a zero; then header and name together, and the content, fill whole words.
        self.to.write_all(&[0; 4][..1 + padding(110 + name_size)])?;
        self.to.write_all(content)?;
        self.to.write_all(&[0; 4][..padding(size)])?;
        self.inode += 1;
        Ok(())
    }
}

const fn padding(size: u32) -> usize {
    (4 - size as usize % 4) % 4
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode and content of every entry, read back by the format's description.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[6 + n * 8..14 + n * 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap() as usize
            };
            let (mode, size, name_size) = (field(1) as u32, field(6), field(11));
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            let start = (110 + name_size).next_multiple_of(4);
            let content = bytes[start..start + size].to_vec();
            bytes = &bytes[(start + size).next_multiple_of(4)..];
            if name == "TRAILER!!!" {
                assert!(bytes.is_empty());
                return entries;
            }
            entries.push((name, mode, content));
        }
    }

    #[test]
    fn what_is_written_reads_back_with_the_folders_it_lies_in() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.file(Path::new("/usr/bin/a"), b"hello").unwrap();
        archive.file(Path::new("/usr/b"), b"four").unwrap();
        archive.character_device(Path::new("/dev/console"), 5, 1).unwrap();
        archive.finish().unwrap();
        let expected = [
            ("usr", FOLDER, ""),
            ("usr/bin", FOLDER, ""),
            ("usr/bin/a", PROGRAM, "hello"),
            ("usr/b", PROGRAM, "four"),
            ("dev", FOLDER, ""),
            ("dev/console", CHARACTER_DEVICE, ""),
        ];
        assert_eq!(read(&bytes), expected.map(|(name, mode, content)| (name.into(), mode, content.into())));
    }
}
