//! The resolver between guests and a server outside: TCP, long answers, what is kept, and what is
//! said when nobody answers.

use crate::lab::{ARRIVES, CLIENT, GATEWAY, HOST, Lab, NEVER, Space, UPSTREAM};
use crate::names::{ask, data, question};
use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{RData, Record, RecordType};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tt_model::EnvId;
use tt_network::Network;

/// What the server says of the age of its records.
const AGE_SECONDS: u32 = 1;

/// A server that knows every address, and for `TXT` gives 3 KiB.
struct Upstream {
    is_over: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Upstream {
    fn start(host: &Space) -> Self {
        let at: SocketAddr = UPSTREAM.parse().unwrap();
        let udp = host.udp(at);
        udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let tcp = host.run(|| TcpListener::bind(at).unwrap());
        tcp.set_nonblocking(true).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicUsize::new(0));
        let threads = vec![
            thread::spawn({
                let (is_over, asked) = (is_over.clone(), asked.clone());
                move || serve_udp(&udp, &is_over, &asked)
            }),
            thread::spawn({
                let (is_over, asked) = (is_over.clone(), asked.clone());
                move || serve_tcp(&tcp, &is_over, &asked)
            }),
        ];
        Self { is_over, asked, threads }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn serve_udp(socket: &UdpSocket, is_over: &AtomicBool, asked: &AtomicUsize) {
    let mut buffer = [0; 2048];
    while !is_over.load(Ordering::SeqCst) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        asked.fetch_add(1, Ordering::SeqCst);
        let mut answer = answer(&buffer[..length]);
        let bytes = answer.to_vec().unwrap();
        // As a server does that takes every client for one with room.
        if bytes.len() > 4000 {
            answer.metadata.truncation = true;
            answer.answers.clear();
        }
        let _ = socket.send_to(&answer.to_vec().unwrap(), from);
    }
}

fn serve_tcp(listener: &TcpListener, is_over: &AtomicBool, asked: &AtomicUsize) {
    while !is_over.load(Ordering::SeqCst) {
        let Ok((mut stream, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        stream.set_nonblocking(false).unwrap();
        asked.fetch_add(1, Ordering::SeqCst);
        let question = read_message(&mut stream).unwrap();
        write_message(&mut stream, &answer(&question).to_vec().unwrap());
    }
}

fn answer(question: &[u8]) -> Message {
    let mut message = Message::from_vec(question).unwrap().into_response();
    let (name, kind) = (message.queries[0].name().clone(), message.queries[0].query_type());
    let record = |data| Record::from_rdata(name.clone(), AGE_SECONDS, data);
    if kind == RecordType::TXT {
        message
            .add_answers((0..15).map(|n| record(RData::TXT(TXT::new(vec![format!("{n:0200}")])))));
    } else {
        message.add_answer(record(RData::A(A::new(203, 0, 113, 5))));
    }
    message
}

fn read_message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

fn write_message(stream: &mut TcpStream, message: &[u8]) {
    let length = (message.len() as u16).to_be_bytes();
    stream.write_all(&[&length, message].concat()).unwrap();
}

fn open(space: &Space) -> TcpStream {
    space.connect((GATEWAY, 53), ARRIVES).unwrap()
}

#[test]
fn long_answers_come_over_tcp_and_never_over_udp() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let guest = lab.guest(EnvId(1), 0);
        let _upstream = Upstream::start(&lab.host);
        let socket = guest.space.udp(([0, 0, 0, 0], 0));
        socket.set_read_timeout(Some(ARRIVES)).unwrap();
        let mut asked = Message::from_vec(&question("long.example.", RecordType::TXT)).unwrap();
        for offered in [None, Some(65_535)] {
            asked.edns = offered.map(|offered| {
                let mut edns = Edns::new();
                edns.set_max_payload(offered);
                edns
            });
            socket.send_to(&asked.to_vec().unwrap(), (GATEWAY, 53)).unwrap();
            let mut buffer = [0; 8192];
            let length = socket.recv(&mut buffer).unwrap();
            assert!(length < 100, "no amplifier: {length} bytes");
            assert!(Message::from_vec(&buffer[..length]).unwrap().metadata.truncation);
        }
        let mut stream = open(&guest.space);
        for id in [7, 8] {
            asked.metadata.id = id;
            write_message(&mut stream, &asked.to_vec().unwrap());
            let answer = Message::from_vec(&read_message(&mut stream).unwrap()).unwrap();
            assert_eq!((answer.metadata.id, answer.answers.len()), (id, 15));
        }
    });
}

#[test]
fn questions_over_tcp_are_answered_in_turn_and_slow_guests_cut_off() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let guest = lab.guest(EnvId(1), 0);
        let mut stream = open(&guest.space);
        let unknown = question("cache.", RecordType::A);
        // Two at once, and the second one in pieces.
        let framed = [&(unknown.len() as u16).to_be_bytes()[..], &unknown].concat();
        let both = [&framed[..], &framed].concat();
        let (first, rest) = both.split_at(framed.len() + 5);
        stream.write_all(first).unwrap();
        let code = |message: Vec<u8>| Message::from_vec(&message).unwrap().metadata.response_code;
        assert_eq!(code(read_message(&mut stream).unwrap()), ResponseCode::NXDomain);
        stream.write_all(rest).unwrap();
        assert_eq!(code(read_message(&mut stream).unwrap()), ResponseCode::NXDomain);
        let mut hostile = open(&guest.space);
        hostile.write_all(&[0xff; 600]).unwrap();
        assert!(read_message(&mut hostile).is_none(), "no message is so long");
        let idle: Vec<TcpStream> = (0..40).map(|_| open(&guest.space)).collect();
        let friend = lab.guest(EnvId(2), 0);
        let mut other = open(&friend.space);
        write_message(&mut other, &unknown);
        assert!(read_message(&mut other).is_some(), "others are not starved");
        for mut stream in idle {
            stream.set_read_timeout(Some(Duration::from_secs(12))).unwrap();
            assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
        }
        let mut again = open(&guest.space);
        write_message(&mut again, &unknown);
        assert!(read_message(&mut again).is_some());
        assert!(lab.client.connect((HOST, 53), NEVER).is_err());
        assert!(guest.space.connect((CLIENT, 53), NEVER).is_err());
    });
}

#[test]
fn answers_are_kept_as_long_as_they_say_and_serve_when_nobody_answers() {
    Lab::run(|lab| {
        lab.net.init().unwrap();
        let (guest, other) = (lab.guest(EnvId(1), 0), lab.guest(EnvId(2), 0));
        let upstream = Upstream::start(&lab.host);
        let ask = |space: &Space| ask(space, "example.com.", RecordType::A);
        for _ in 0..5 {
            assert_eq!(ask(&guest.space), data("203.0.113.5"));
        }
        assert_eq!(upstream.asked(), 1);
        assert_eq!(ask(&other.space), data("203.0.113.5"));
        assert_eq!(upstream.asked(), 2, "an env learns nothing of another one");
        thread::sleep(Duration::from_millis(1100));
        assert_eq!(ask(&guest.space), data("203.0.113.5"));
        assert_eq!(upstream.asked(), 3);
        drop(upstream);
        thread::sleep(Duration::from_millis(1100));
        assert_eq!(ask(&guest.space), data("203.0.113.5"), "nobody listens");
        let _silent = lab.host.udp(UPSTREAM.parse::<SocketAddr>().unwrap());
        assert_eq!(ask(&guest.space), data("203.0.113.5"), "nobody answers");
        lab.net.deny_outgoing(&guest.vm).unwrap();
        assert_eq!(ask(&guest.space), Some((ResponseCode::Refused, vec![])));
    });
}
