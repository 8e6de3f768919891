//! A static program for guests, built by the test kit: what BusyBox has no applet for. It never ends by itself as a
//! server; as a client it ends with 0 if what it sent came back.
//!
//! `helper echo PORT`: sends back what comes by TCP and UDP.
//! `helper tcp TO PORT`, `helper udp FROM TO PORT`: asks an echo server.
//! `helper count PORT`: numbers who comes by TCP; the last number is nowhere but in its memory.
//! `helper hold TO PORT FILE`: asks an echo server again and again over one connection; FILE has a byte for each answer.
//! `helper write FILE`: appends numbered blocks, each with its sum, each safe before the next.
//! `helper check FILE`: says how many whole blocks there are; fails if one is not as it was written.
//! `helper frames LINK`: sends frames from standard input, which are how often (u32), how many (u32), and each with its
//! length (u16) before it; says `sent NUMBER` after all of them, and takes the next ones.
//! `helper tries MARK ATTEMPT..`: makes all attempts at once and says which something came back for. An attempt is
//! `tcp TO` or `udp FROM TO`, both with ports; datagrams are MARK.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::FromRawFd;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(2);
/// Of attempts that must come to nothing; what comes later is seen where it arrives.
const TRIES: Duration = Duration::from_millis(900);
/// Pause between two questions, and between two blocks.
const PACE: Duration = Duration::from_millis(20);
/// Words of a block: its number, what follows from it, the sum of these.
const WORDS: usize = 256;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let came_back = match words[..] {
        ["echo", port] => echo(port.parse().unwrap()),
        ["tcp", to, port] => tcp(&format!("{to}:{port}")),
        ["udp", from, to, port] => udp(&format!("{from}:0"), &format!("{to}:{port}")),
        ["count", port] => count(port.parse().unwrap()),
        ["hold", to, port, file] => hold(&format!("{to}:{port}"), &mut opened(file)),
        ["write", file] => write(&mut opened(file)),
        ["check", file] => check(&std::fs::read(file).unwrap()),
        ["frames", link] => frames(link),
        ["tries", mark, ..] => tries(mark, &words[2..]),
        _ => panic!("usage: helper echo|count|tcp|udp|hold|write|check|frames|tries .."),
    };
    if came_back { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn echo(port: u16) -> bool {
    let tcp = TcpListener::bind(("0.0.0.0", port)).unwrap();
    let udp = UdpSocket::bind(("0.0.0.0", port)).unwrap();
    thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    let mut data = [0; 4096];
    loop {
        if let Ok((length, from)) = udp.recv_from(&mut data) {
            let _ = udp.send_to(&data[..length], from);
        }
    }
}

fn serve(mut stream: TcpStream) {
    let mut data = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut data) {
        if stream.write_all(&data[..length]).is_err() {
            break;
        }
    }
}

fn tcp(to: &str) -> bool {
    let to: SocketAddr = to.parse().unwrap();
    let Ok(mut stream) = TcpStream::connect_timeout(&to, PATIENCE) else { return false };
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let mut answer = [0; 5];
    stream.write_all(b"echo\n").is_ok() && stream.read_exact(&mut answer).is_ok()
}

fn udp(from: &str, to: &str) -> bool {
    let socket = UdpSocket::bind(from).unwrap();
    let _ = socket.set_read_timeout(Some(PATIENCE));
    let mut answer = [0; 16];
    socket.send_to(b"echo\n", to).is_ok() && socket.recv(&mut answer).is_ok()
}

fn count(port: u16) -> bool {
    let tcp = TcpListener::bind(("0.0.0.0", port)).unwrap();
    for (number, stream) in (1u64..).zip(tcp.incoming().flatten()) {
        let _ = (&stream).write_all(format!("{number}\n").as_bytes());
    }
    false
}

fn hold(to: &str, answers: &mut File) -> bool {
    let mut stream = TcpStream::connect(to).unwrap();
    let mut answer = [0; 5];
    while stream.write_all(b"echo\n").is_ok() && stream.read_exact(&mut answer).is_ok() {
        answers.write_all(b".").unwrap();
        thread::sleep(PACE);
    }
    false
}

fn opened(file: &str) -> File {
    OpenOptions::new().create(true).append(true).open(file).unwrap()
}

fn write(file: &mut File) -> bool {
    for number in 0.. {
        file.write_all(&block(number)).unwrap();
        file.sync_data().unwrap();
        thread::sleep(PACE);
    }
    false
}

fn check(data: &[u8]) -> bool {
    // One that is being written may be there in part.
    let mut blocks = data.chunks_exact(WORDS * 8);
    println!("{}", blocks.len());
    blocks.by_ref().enumerate().all(|(number, found)| found == block(number as u64))
}

fn block(number: u64) -> Vec<u8> {
    let (mut word, mut sum) = (number, 0u64);
    let mut data = Vec::with_capacity(WORDS * 8);
    for _ in 1..WORDS {
        data.extend(word.to_le_bytes());
        sum = (sum ^ word).wrapping_mul(0x0100_0000_01b3);
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    }
    data.extend(sum.to_le_bytes());
    data
}

fn tries(mark: &str, attempts: &[&str]) -> bool {
    let attempt = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
        ["tcp", to] => TcpStream::connect_timeout(&to.parse().unwrap(), TRIES).is_ok(),
        ["udp", from, to] => {
            let socket = UdpSocket::bind(from).unwrap();
            socket.set_read_timeout(Some(TRIES)).unwrap();
            socket.send_to(mark.as_bytes(), to).is_ok() && socket.recv(&mut [0; 64]).is_ok()
        }
        _ => panic!("{line} is no attempt"),
    };
    thread::scope(|scope| {
        let started: Vec<_> =
            attempts.iter().map(|line| (line, scope.spawn(move || attempt(line)))).collect();
        for (line, attempt) in started {
            if attempt.join().unwrap() {
                println!("{line}");
            }
        }
    });
    true
}

fn frames(link: &str) -> bool {
    let (mut socket, mut input) = (packet_socket(link), std::io::stdin().lock());
    let mut head = [0; 8];
    while input.read_exact(&mut head).is_ok() {
        let [often, count] =
            [0, 4].map(|at| u32::from_be_bytes(head[at..at + 4].try_into().unwrap()));
        let mut frames = Vec::new();
        for _ in 0..count {
            let mut length = [0; 2];
            input.read_exact(&mut length).unwrap();
            let mut frame = vec![0; usize::from(u16::from_be_bytes(length))];
            input.read_exact(&mut frame).unwrap();
            frames.push(frame);
        }
        let all = (0..often).flat_map(|_| &frames);
        // A full queue is no failure of a flood.
        println!("sent {}", all.filter(|frame| socket.write(frame).is_ok()).count());
    }
    true
}

/// See packet(7): the address is family, protocol, link, and what only answers hold. Without a protocol nothing comes in.
fn packet_socket(link: &str) -> File {
    #[repr(C)]
    struct Address(u16, u16, i32, [u8; 12]);
    unsafe extern "C" {
        fn socket(domain: i32, kind: i32, protocol: i32) -> i32;
        fn bind(fd: i32, address: *const Address, length: u32) -> i32;
        fn if_nametoindex(name: *const std::ffi::c_char) -> u32;
    }
    const AF_PACKET: u16 = 17;
    const SOCK_RAW: i32 = 3;
    let name = CString::new(link).unwrap();
    // SAFETY: plain calls with numbers, a string, and an address that outlives its call; the descriptor is nobody else's.
    unsafe {
        let fd = socket(AF_PACKET.into(), SOCK_RAW, 0);
        assert!(fd >= 0, "no packet socket");
        let link = if_nametoindex(name.as_ptr()) as i32;
        let address = Address(AF_PACKET, 0, link, [0; 12]);
        assert_eq!(bind(fd, &address, size_of::<Address>() as u32), 0, "it is not bound");
        File::from_raw_fd(fd)
    }
}
