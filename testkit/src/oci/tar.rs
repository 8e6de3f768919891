//! A tar writer that writes whatever it is told.

/// One entry.
#[derive(Clone, Debug)]
pub struct Node {
    /// The type flag.
    pub kind: u8,
    /// Its name; one that is too long for the header goes into a pax record.
    pub path: Vec<u8>,
    /// Where it points.
    pub link: Vec<u8>,
    /// Permissions.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// What is in it.
    pub data: Vec<u8>,
    /// The field that says how much that is, if it is not to be true.
    pub size: Option<Vec<u8>>,
    /// Records of a pax header before it.
    pub pax: Vec<(String, Vec<u8>)>,
}

impl Node {
    /// An entry of that type.
    pub fn new(kind: u8, path: impl AsRef<[u8]>) -> Self {
        let path = path.as_ref().to_vec();
        let (link, data, pax) = (Vec::new(), Vec::new(), Vec::new());
        Self { kind, path, link, mode: 0o644, uid: 0, gid: 0, data, size: None, pax }
    }

    /// A file.
    pub fn file(path: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        Self { data: data.as_ref().to_vec(), ..Self::new(b'0', path) }
    }

    /// A program.
    pub fn program(path: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        Self::file(path, data).mode(0o755)
    }

    /// A directory.
    pub fn dir(path: impl AsRef<[u8]>) -> Self {
        Self::new(b'5', path).mode(0o755)
    }

    /// A symbolic link.
    pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(b'2', path) }
    }

    /// Another name of what is at `target`.
    pub fn hard_link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { link: target.as_ref().to_vec(), ..Self::new(b'1', path) }
    }

    /// With that mode.
    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// With that owner and group.
    #[must_use]
    pub fn owner(self, uid: u32, gid: u32) -> Self {
        Self { uid, gid, ..self }
    }

    /// With that field for its size.
    #[must_use]
    pub fn size(self, field: impl AsRef<[u8]>) -> Self {
        Self { size: Some(field.as_ref().to_vec()), ..self }
    }

    /// With one more pax record.
    #[must_use]
    pub fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.to_owned(), value.as_ref().to_vec()));
        self
    }

    fn write(&self, out: &mut Vec<u8>) {
        const NAME_BYTES_MAX: usize = 100;
        let mut pax = self.pax.clone();
        for (key, name) in [("path", &self.path), ("linkpath", &self.link)] {
            if name.len() > NAME_BYTES_MAX {
                pax.push((key.to_owned(), name.clone()));
            }
        }
        if !pax.is_empty() {
            let records: Vec<u8> = pax.iter().flat_map(|(key, value)| record(key, value)).collect();
            Self { data: records, ..Self::new(b'x', "pax") }.write(out);
        }
        let mut block = [0; 512];
        let cut = |name: &[u8]| name[..name.len().min(NAME_BYTES_MAX)].to_vec();
        let put = |block: &mut [u8], at: usize, field: &[u8]| {
            block[at..at + field.len()].copy_from_slice(field);
        };
        put(&mut block, 0, &cut(&self.path));
        put(&mut block, 100, format!("{:07o}", self.mode).as_bytes());
        put(&mut block, 108, &id(self.uid));
        put(&mut block, 116, &id(self.gid));
        let size = format!("{:011o}", self.data.len()).into_bytes();
        put(&mut block, 124, self.size.as_ref().unwrap_or(&size));
        put(&mut block, 136, b"14524437400");
        block[156] = self.kind;
        put(&mut block, 157, &cut(&self.link));
        put(&mut block, 257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
        put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
        out.extend(block);
        out.extend(&self.data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
}

/// An archive of these entries, with its end.
pub fn tar(nodes: &[Node]) -> Vec<u8> {
    let mut out = Vec::new();
    for node in nodes {
        node.write(&mut out);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// In octal, or in base 256 where that is too long.
fn id(id: u32) -> Vec<u8> {
    if id < 0o10_000_000 {
        return format!("{id:07o}").into_bytes();
    }
    let mut field = vec![0x80, 0, 0, 0];
    field.extend(id.to_be_bytes());
    field
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}
