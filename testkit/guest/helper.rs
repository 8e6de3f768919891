//! A static program for guests, built by the test kit: what BusyBox has no applet for. It never ends by itself as a
//! server; as a client it ends with 0 if what it sent came back.
//!
//! `helper echo PORT`: sends back what comes by TCP and UDP.
//! `helper tcp TO PORT`, `helper udp FROM TO PORT`: asks an echo server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let came_back = match words[..] {
        ["echo", port] => echo(port.parse().unwrap()),
        ["tcp", to, port] => tcp(&format!("{to}:{port}")),
        ["udp", from, to, port] => udp(&format!("{from}:0"), &format!("{to}:{port}")),
        _ => panic!("usage: helper echo PORT | tcp TO PORT | udp FROM TO PORT"),
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
