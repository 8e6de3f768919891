//! Imports through the daemon: what strangers would like to be imported, a fetch in which the daemon dies; and what is
//! cleared of templates without being asked.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use testkit::oci::{Node, tar};
use testkit::{Lab, Setup, Space, eventually};

/// How long something that happens without being waited for may take.
const SOON: Duration = Duration::from_secs(120);
/// Another test may be putting `debian-12` together in the same cache, which takes minutes once.
const BUILT: Duration = Duration::from_secs(420);
/// How long all hostile imports may take on a busy machine.
const HOSTILE_MAX: Duration = Duration::from_secs(90);

#[test]
fn imports_outlive_the_daemon_and_strangers_get_nothing() {
    let name = "imports_outlive_the_daemon_and_strangers_get_nothing";
    let Some(mut lab) = Setup::new(name).start() else { return };
    a_fetch_goes_on_after_the_daemon_was_killed(&mut lab);
    hostile_files_are_refused_and_leave_nothing(&lab);
    what_nobody_needs_is_cleared(&lab);
    lab.tt(&["template", "rm", "far"]).good();
    lab.finish();
}

/// Of each request: its range, and what that shall belong to.
type Asked = Arc<Mutex<Vec<(Option<String>, Option<String>)>>>;

/// A server of one disk, which says a third of it to the first client, and then nothing more.
struct Server {
    address: SocketAddr,
    asked: Asked,
}

impl Server {
    /// It lives as long as this process.
    fn within(space: &Space, disk: Vec<u8>) -> Self {
        let listener = space.run(|| TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Asked::default();
        let seen = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, disk) = (seen.clone(), disk.clone());
                // A client that is killed hears nothing more.
                std::thread::spawn(move || drop(serve(stream, &seen, &disk)));
            }
        });
        Self { address, asked }
    }
}

fn serve(mut stream: TcpStream, seen: &Asked, disk: &[u8]) -> std::io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let (range, validator) = (header("range"), header("if-range"));
    let is_first = {
        let mut seen = seen.lock().unwrap();
        seen.push((range.clone(), validator));
        seen.len() == 1
    };
    let begin =
        range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let begin: usize = begin.unwrap_or(0);
    let (total, last) = (disk.len(), disk.len() - 1);
    let (status, part) = match begin {
        0 => ("200 OK", String::new()),
        _ => ("206 Partial Content", format!("Content-Range: bytes {begin}-{last}/{total}\r\n")),
    };
    let rest = total - begin;
    let head =
        format!("HTTP/1.1 {status}\r\nETag: \"one\"\r\n{part}Content-Length: {rest}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    if is_first {
        stream.write_all(&disk[..total / 3])?;
        // Until the client is gone.
        return stream.read_exact(&mut byte);
    }
    stream.write_all(&disk[begin..])
}

fn a_fetch_goes_on_after_the_daemon_was_killed(lab: &mut Lab) {
    let mut disk: Vec<u8> = (0..3_u32 << 20).flat_map(|n| n.to_be_bytes()).collect();
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let server = Server::within(&lab.host, disk.clone());
    let url = format!("http://{}/disk.raw", server.address);
    lab.tt(&["template", "import", "example.org/me/far", &url, "--no-wait"]).good();
    let part = lab.data().join("making/example.org%2Fme%2Ffar/source");
    let fetched = || part.metadata().map_or(0, |meta| meta.len());
    let third = disk.len() as u64 / 3;
    eventually("a third is fetched", SOON, || {
        Some(fetched()).filter(|bytes| *bytes < third).map(|bytes| format!("{bytes} bytes"))
    });
    lab.kill9();
    assert_eq!(fetched(), third, "what was fetched is gone");
    lab.restart();
    let view = |lab: &Lab| lab.json(&["template", "show", "far"]);
    eventually("it is there", SOON, || {
        let view = view(lab);
        (view["phase"] != "ready").then(|| view.to_string())
    });
    let asked = server.asked.lock().unwrap().clone();
    let rest = (Some(format!("bytes={third}-")), Some("\"one\"".to_owned()));
    assert_eq!(asked, [(None, None), rest]);
    let path = view(lab)["template"]["path"].as_str().unwrap().to_owned();
    assert!(
        fs::read(lab.data().join(path).join("disk.raw")).unwrap() == disk,
        "it is another disk"
    );
    assert!(lab.entries("making").is_empty());
}

/// What, how it comes to be in a directory, and what is said of it.
type Case = (&'static str, fn(&Path) -> PathBuf, &'static str);

fn put(dir: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    path
}

fn made_by(program: &str, dir: &Path, name: &str, args: &[&str]) -> PathBuf {
    let made = Command::new(program).current_dir(dir).args(args).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    dir.join(name)
}

const HOSTILE: &[Case] = &[
    (
        "link",
        |dir| {
            symlink("/etc/shadow", dir.join("link")).unwrap();
            dir.join("link")
        },
        "it is a symbolic link",
    ),
    ("fifo", |dir| made_by("mkfifo", dir, "fifo", &["fifo"]), "no regular file"),
    ("device", |_| "/dev/zero".into(), "no regular file"),
    ("text", |dir| put(dir, "text", b"root:x:0:0\n"), "no disk or archive"),
    (
        "sparse",
        |dir| made_by("truncate", dir, "sparse", &["--size", "15T", "sparse"]),
        "the most that fits",
    ),
    (
        "backing",
        |dir| {
            put(dir, "shadow", b"precious");
            let args =
                ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "shadow", "backing", "1M"];
            made_by("qemu-img", dir, "backing", &args)
        },
        "backing file",
    ),
    (
        "data-file",
        |dir| {
            let args = ["create", "-q", "-f", "qcow2", "-o", "data_file=data", "data-file", "1M"];
            made_by("qemu-img", dir, "data-file", &args)
        },
        "in another file",
    ),
    (
        "flat",
        |dir| {
            let text = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n\
                        createType=\"monolithicFlat\"\nRW 100 FLAT \"/etc/shadow\" 0\n";
            put(dir, "flat", text.as_bytes())
        },
        "names other files",
    ),
    (
        "climber",
        |dir| put(dir, "climber", &tar(&[Node::file("../../../../strangers/evil", b"x")])),
        "..",
    ),
    (
        "through-link",
        |dir| {
            let to = dir.join("outside").display().to_string();
            let nodes = [Node::symlink("way", to), Node::file("way/evil", b"x")];
            put(dir, "through-link", &tar(&nodes))
        },
        "link to nothing",
    ),
    ("node", |dir| put(dir, "node", &tar(&[Node::new(b'4', "disk")])), "it is a device"),
    (
        "shadow-link",
        |dir| put(dir, "shadow-link", &tar(&[Node::hard_link("s", "../../../../../etc/shadow")])),
        "..",
    ),
];

fn hostile_files_are_refused_and_leave_nothing(lab: &Lab) {
    let dir = lab.dir().join("strangers");
    fs::create_dir_all(dir.join("outside")).unwrap();
    let files: Vec<_> = HOSTILE.iter().map(|(what, make, says)| (what, make(&dir), says)).collect();
    let before = (files_in(&dir), lab.tree("templates"));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for (what, file, says) in &files {
            scope.spawn(move || {
                let name = format!("example.org/evil/{what}");
                let refused = lab.tt(&["template", "import", &name, file.to_str().unwrap()]);
                refused.fails(1, says);
                refused.fails(1, "[ERR_TT_TEMPLATE]");
                lab.tt(&["template", "rm", &name]).good();
            });
        }
    });
    // This one has not even a record.
    let import = ["template", "import", "example.org/evil/url", "file:///etc/shadow"];
    lab.tt(&import).fails(1, "[ERR_TT_INVALID]");
    assert!(begin.elapsed() < HOSTILE_MAX, "{:?}", begin.elapsed());
    assert_eq!((files_in(&dir), lab.tree("templates")), before);
    assert!(lab.entries("making").is_empty());
}

/// What lies in a directory, with its size.
fn files_in(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        all.extend(if meta.is_dir() { files_in(&path) } else { vec![(path, meta.len())] });
    }
    all.sort();
    all
}

fn what_nobody_needs_is_cleared(lab: &Lab) {
    // A template without a name, a draft without a record, a build that nothing used for long.
    let unnamed = lab.data().join("templates").join("0".repeat(64));
    let orphan = lab.data().join("making/example.org%2Fnobody");
    let config = fs::read_to_string(lab.config()).unwrap();
    let cache = config.lines().find_map(|line| line.strip_prefix("cache_dir = \"")).unwrap();
    let own = format!("old-{}", std::process::id());
    let old = Path::new(cache.trim_end_matches('"')).join("micro/builds").join(own);
    let all = [&unnamed, &orphan, &old];
    for dir in all {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("disk.raw"), "x").unwrap();
        let then = SystemTime::now() - Duration::from_secs(100 * 24 * 3600);
        File::open(dir).unwrap().set_modified(then).unwrap();
    }
    // A disk that no record knows may lie on the template.
    let stray = lab.data().join("images/4711");
    fs::create_dir_all(&stray).unwrap();
    fs::write(stray.join("0.qcow2"), "x").unwrap();
    let repaired = lab.tt(&["verify", "--repair"]).good();
    assert!(repaired.contains("image  stray  4711"), "{repaired}");
    assert!(!stray.exists() && unnamed.exists());
    // Not while somebody builds: the cache serves other tests, too.
    eventually("all of it is cleared", BUILT, || {
        lab.tt(&["verify", "--repair"]).good();
        all.iter().find(|dir| dir.exists()).map(|dir| format!("{} is there", dir.display()))
    });
    assert_eq!(lab.json(&["template", "show", "far"])["phase"], "ready");
    assert_eq!(lab.json(&["template", "show", "micro"])["phase"], "ready");
}
