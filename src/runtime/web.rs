//! The live page of a run (`run --serve ADDRESS`): one page, and the numbers and charts it asks for again and again.
//!
//! One thread serves all clients without waiting for any: sockets do not block, a request has [`PATIENCE`] from
//! connection to last byte, and at most [`CLIENTS`] are kept. It reads counters and `metrics.jsonl`, and changes
//! nothing. On a loopback address only requests for a loopback host are answered, so that no foreign page can reach
//! it through a name of its own; on any other address a request must carry the token.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;

use super::event::Event;
use super::parts::{RuntimeError, Shared};
use super::realtime::spawn;
use super::socket::status;
use crate::clock::{Clock, Stamp, monotonic};
use crate::spaces::Frame;
use crate::telemetry::{Follower, page};

/// Longest head of a request in bytes.
const LONGEST: usize = 8192;
/// Clients at a time; the one that came first leaves for one more.
const CLIENTS: usize = 16;
/// Time of a client from connection to the last byte of its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Age up to which numbers are sent again instead of being made anew.
const FRESH: Duration = Duration::from_millis(500);

/// A page that is being served; ends with this value.
pub(super) struct Page {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Option<()>>>,
}

impl Drop for Page {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Serves the page of the run in `folder` and tells the observer where.
pub(super) fn serve(address: SocketAddr, folder: &Path, shared: &Arc<Shared>) -> Result<Page, RuntimeError> {
    let failed = |source| RuntimeError::Serve { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let token = if address.ip().is_loopback() { None } else { Some(token().map_err(failed)?) };
    let url = match &token {
        None => format!("http://{address}/"),
        Some(token) if address.ip().is_unspecified() => {
            format!("http://THIS-MACHINE:{}/?token={token}", address.port())
        }
        Some(token) => format!("http://{address}/?token={token}"),
    };
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let mut site = Site {
        document: page::page(&format!("fieldtune: {name}"), include_str!("live.html")),
        follower: Follower::new(&folder.join("metrics.jsonl")),
        token,
        shared: Arc::clone(shared),
        made: None,
    };
    let over = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&over);
    let thread = spawn("page", shared, move || site.serve(&listener, &end))?;
    shared.tell(Event::Serving { url });
    Ok(Page { over, thread: Some(thread) })
}

/// 128 random bits.
fn token() -> std::io::Result<String> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)))
}

struct Site {
    document: String,
    follower: Follower,
    token: Option<String>,
    shared: Arc<Shared>,
    /// The last numbers, and when they were made.
    made: Option<(Stamp, String)>,
}

/// A client: what it has asked so far, or what is left of its answer.
struct Client {
    stream: TcpStream,
    since: Stamp,
    asked: Vec<u8>,
    answer: Vec<u8>,
    sent: usize,
}

impl Site {
    fn serve(&mut self, listener: &TcpListener, over: &AtomicBool) {
        let mut clients: Vec<Client> = Vec::new();
        while !over.load(Relaxed) {
            while let Ok((stream, _)) = listener.accept() {
                if clients.len() == CLIENTS {
                    clients.remove(0);
                }
                if stream.set_nonblocking(true).is_ok() {
                    let since = monotonic();
                    clients.push(Client { stream, since, asked: Vec::new(), answer: Vec::new(), sent: 0 });
                }
            }
            clients.retain_mut(|client| self.attend(client));
            let pause = Duration::from_millis(if clients.is_empty() { 40 } else { 5 });
            Clock::Monotonic.sleep_until(monotonic().plus(pause));
        }
    }

    /// Does what can be done without waiting; false when the client is done or has had its time.
    fn attend(&mut self, client: &mut Client) -> bool {
        if client.answer.is_empty() {
            match client.read() {
                Ok(Some(head)) => client.answer = self.answer(&head),
                Ok(None) => {}
                Err(_) => return false,
            }
        }
        let unsent = client.write();
        matches!(unsent, Ok(true)) && monotonic().since(client.since) < PATIENCE
    }

    /// The whole answer to the head of a request.
    fn answer(&mut self, head: &Head) -> Vec<u8> {
        let Head::Whole(head) = head else {
            return response("431 Request Header Fields Too Large", "text/plain", "too long\n");
        };
        let Some(request) = Request::parse(head) else {
            return response("400 Bad Request", "text/plain", "not a request\n");
        };
        if !self.may(&request) {
            return response("403 Forbidden", "text/plain", "the address of the page was printed at start\n");
        }
        if request.method != "GET" {
            return response("405 Method Not Allowed", "text/plain", "only GET\n");
        }
        match request.path {
            "/" => response("200 OK", "text/html; charset=utf-8", &self.document),
            "/state.json" => {
                let state = self.state();
                response("200 OK", "application/json", state)
            }
            "/camera.bmp" => match self.shared.camera.newest() {
                Some(frame) => answer("200 OK", "image/bmp", &bitmap(&frame)),
                None => response("404 Not Found", "text/plain", "no camera, or no frame yet\n"),
            },
            _ => response("404 Not Found", "text/plain", "there are /, /state.json and /camera.bmp\n"),
        }
    }

    fn may(&self, request: &Request<'_>) -> bool {
        match &self.token {
            Some(token) => same(request.token.as_bytes(), token.as_bytes()),
            None => is_loopback(request.host),
        }
    }

    fn state(&mut self) -> &str {
        let now = monotonic();
        if self.made.as_ref().is_some_and(|(then, _)| now.since(*then) >= FRESH) {
            self.made = None;
        }
        let (follower, shared) = (&mut self.follower, &self.shared);
        let make = || {
            // Not there before the first record; what was read before stays.
            let _ = follower.poll();
            let history = follower.history();
            let charts: Vec<_> = page::charts(history).iter().map(page::figure).collect();
            let state = json!({"status": status(shared), "charts": charts, "numbers": page::numbers(history),
                "remarks": page::remarks(history)});
            (now, state.to_string())
        };
        &self.made.get_or_insert_with(make).1
    }
}

/// Whether two texts are equal, in a time that does not say where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |found, (a, b)| found | (a ^ b)) == 0
}

/// Whether a `Host` header names this machine's loopback, with or without a port.
fn is_loopback(host: &str) -> bool {
    let port = |rest: &str| rest.is_empty() || rest.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok());
    let name = match host.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((name, rest)) if port(rest) => name,
        Some(_) => return false,
        None => match host.split_once(':') {
            Some((name, number)) if number.parse::<u16>().is_ok() => name,
            Some(_) => return false,
            None => host,
        },
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// What a client has sent.
enum Head {
    Whole(Vec<u8>),
    TooLong,
}

impl Client {
    /// The head of the request when it is complete.
    fn read(&mut self) -> std::io::Result<Option<Head>> {
        let mut chunk = [0; 2048];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.asked.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if let Some(end) = self.asked.windows(4).position(|w| w == b"\r\n\r\n") {
                self.asked.truncate(end);
                return Ok(Some(Head::Whole(std::mem::take(&mut self.asked))));
            }
            if self.asked.len() > LONGEST {
                return Ok(Some(Head::TooLong));
            }
        }
    }

    /// Sends what the connection takes; true while something is missing.
    fn write(&mut self) -> std::io::Result<bool> {
        while self.sent < self.answer.len() {
            match self.stream.write(&self.answer[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.answer.is_empty())
    }
}

/// What is read of a request.
struct Request<'a> {
    method: &'a str,
    path: &'a str,
    token: &'a str,
    host: &'a str,
}

impl<'a> Request<'a> {
    fn parse(head: &'a [u8]) -> Option<Self> {
        let head = std::str::from_utf8(head).ok()?;
        let mut lines = head.split("\r\n");
        let mut first = lines.next()?.split(' ');
        let (method, target, version) = (first.next()?, first.next()?, first.next()?);
        if first.next().is_some() || !version.starts_with("HTTP/1.") || !target.starts_with('/') {
            return None;
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let token = query.split('&').find_map(|pair| pair.strip_prefix("token=")).unwrap_or("");
        let mut headers = lines.filter_map(|line| line.split_once(':'));
        let host = headers.find(|(name, _)| name.eq_ignore_ascii_case("host")).map_or("", |(_, host)| host.trim());
        Some(Self { method, path, token, host })
    }
}

fn response(status: &str, kind: &str, body: &str) -> Vec<u8> {
    answer(status, kind, body.as_bytes())
}

fn answer(status: &str, kind: &str, body: &[u8]) -> Vec<u8> {
    let mut whole = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\
         Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
         Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
         connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'\r\n\r\n",
        body.len()
    )
    .into_bytes();
    whole.extend_from_slice(body);
    whole
}

/// A frame as a Windows bitmap, which every browser shows and nothing has to encode; several cameras beside each other.
fn bitmap(frame: &Frame) -> Vec<u8> {
    const HEAD: u32 = 54;
    let (width, height, channels) =
        (usize::from(frame.shape.width), usize::from(frame.shape.height), usize::from(frame.shape.channels));
    let cameras = channels / 3;
    let row_bytes = (cameras * width * 3).next_multiple_of(4);
    let bytes = (row_bytes * height) as u32;
    let mut out = Vec::with_capacity(HEAD as usize + bytes as usize);
    out.extend(b"BM");
    for value in [HEAD + bytes, 0, HEAD, 40, (cameras * width) as u32, height as u32] {
        out.extend(value.to_le_bytes());
    }
    out.extend([1, 0, 24, 0]);
    for value in [0, bytes, 0, 0, 0, 0_u32] {
        out.extend(value.to_le_bytes());
    }
    // Rows from bottom to top, colours from blue to red.
    for row in frame.pixels.chunks_exact((width * channels).max(1)).rev() {
        for camera in 0..cameras {
            for pixel in row.chunks_exact(channels) {
                out.extend(pixel[3 * camera..3 * camera + 3].iter().rev());
            }
        }
        out.resize(out.len() + row_bytes - cameras * width * 3, 0);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;

    use crossbeam_channel::bounded;

    use super::*;
    use crate::spaces::FrameShape;

    /// A page of a run folder with two records.
    struct Served {
        _folder: tempfile::TempDir,
        page: Option<Page>,
        url: String,
        shared: Arc<Shared>,
    }

    fn served(address: &str) -> Served {
        let folder = tempfile::tempdir().unwrap();
        let records = "{\"event\":\"episode\",\"at_step\":200,\"episode_return\":-7.5}\n{\"event\":\"update\",\"updates\":10,\"q_mean\":2}\n";
        std::fs::write(folder.path().join("metrics.jsonl"), records).unwrap();
        let (sender, events) = bounded(16);
        let shared = Shared::new(sender, Arc::default());
        let page = serve(address.parse().unwrap(), folder.path(), &shared).unwrap();
        let Ok(Event::Serving { url }) = events.try_recv() else { panic!("the address is told") };
        Served { _folder: folder, page: Some(page), url, shared }
    }

    impl Served {
        fn address(&self) -> String {
            let rest = self.url.strip_prefix("http://").unwrap();
            rest.split('/').next().unwrap().replace("THIS-MACHINE", "127.0.0.1")
        }

        fn connect(&self) -> TcpStream {
            let stream = TcpStream::connect(self.address()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream
        }

        /// Sends bytes and returns everything that comes back.
        fn raw(&self, request: &[u8]) -> String {
            let mut stream = self.connect();
            let _ = stream.write_all(request);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            String::from_utf8_lossy(&answer).into_owned()
        }

        fn get(&self, target: &str, host: &str) -> String {
            self.raw(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())
        }
    }

    fn status_of(answer: &str) -> &str {
        answer.split(' ').nth(1).unwrap_or("none")
    }

    #[test]
    fn page_and_numbers_come_and_bad_requests_are_refused() {
        let site = served("127.0.0.1:0");
        let host = site.address();
        let page = site.get("/", &host);
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.contains("state.json"), "{page}");
        let state = site.get("/state.json?x=1", &host);
        let (head, body) = state.split_once("\r\n\r\n").unwrap();
        let state: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        assert_eq!(state["status"]["updates"], 0);
        assert_eq!(state["charts"].as_array().unwrap().len(), crate::telemetry::PANELS.len());
        assert!(state["charts"][0].as_str().unwrap().contains("<circle"), "the episode is drawn");

        let long = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &vec![b'x'; 20_000]].concat();
        for (request, code) in [
            (format!("POST / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes(), "405"),
            (format!("GET /etc/passwd HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes(), "404"),
            (b"GET / HTTP/1.1\r\nHost: robots.example:80\r\n\r\n", "403"),
            (b"GET / HTTP/1.1\r\nHost: 127.0.0.1.example\r\n\r\n", "403"),
            (b"GET / HTTP/1.1\r\n\r\n", "403"),
            (b"GET http://x/ HTTP/1.1\r\n\r\n", "400"),
            (b"\r\n\r\n", "400"),
            (b"\xff\xfe\x00 / HTTP/1.1\r\n\r\n", "400"),
            (b"GET / HTTP/1.1 more\r\n\r\n", "400"),
            (&long, "431"),
        ] {
            let answer = site.raw(request);
            assert_eq!(
                status_of(&answer),
                code,
                "{}: {answer}",
                String::from_utf8_lossy(&request[..request.len().min(60)])
            );
        }
        for host in ["localhost:8765", "127.0.0.1", "[::1]:9", "LOCALHOST"] {
            assert_eq!(status_of(&site.get("/", host)), "200", "{host}");
        }
        assert!(site.shared.failures().is_empty());
    }

    #[test]
    fn another_address_than_loopback_needs_the_token() {
        let site = served("0.0.0.0:0");
        let token = site.url.split_once("token=").unwrap().1;
        assert_eq!(token.len(), 32);
        let wrong = format!("{}{}", &token[..31], if token.ends_with('0') { '1' } else { '0' });
        for (target, code) in [
            ("/".into(), "403"),
            ("/state.json".into(), "403"),
            ("/?token=".into(), "403"),
            (format!("/?token={wrong}"), "403"),
            (format!("/state.json?token={}", &token[..31]), "403"),
            (format!("/?token={token}"), "200"),
            (format!("/state.json?a=b&token={token}"), "200"),
        ] {
            assert_eq!(status_of(&site.get(&target, "robot.example")), code, "{target}");
        }
        assert_ne!(token, served("0.0.0.0:0").url.split_once("token=").unwrap().1);
    }

    #[test]
    fn slow_and_silent_clients_hold_up_nobody() {
        let mut site = served("127.0.0.1:0");
        let host = site.address();
        let silent: Vec<_> = (0..CLIENTS + 4).map(|_| site.connect()).collect();
        let mut half = site.connect();
        half.write_all(b"GET / HT").unwrap();
        let mut gone = site.connect();
        gone.write_all(format!("GET /state.json HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap();
        gone.shutdown(Shutdown::Both).unwrap();
        drop(gone);
        let begin = monotonic();
        assert_eq!(status_of(&site.get("/", &host)), "200");
        assert!(monotonic().since(begin) < PATIENCE / 2, "waited for others");
        // Who never finishes is let go.
        let mut rest = Vec::new();
        let _ = half.read_to_end(&mut rest);
        assert!(rest.is_empty() && monotonic().since(begin) < PATIENCE * 3);
        drop(silent);
        let begin = monotonic();
        drop(site.page.take());
        assert!(monotonic().since(begin) < PATIENCE, "the page ends when asked to");
        assert!(TcpStream::connect(&host).is_err());
        assert!(site.shared.failures().is_empty());
    }

    #[test]
    fn a_frame_is_a_bitmap_with_its_cameras_side_by_side() {
        let shape = FrameShape { width: 1, height: 2, channels: 6 };
        let pixels = Box::from([1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16]);
        let found = bitmap(&Frame { shape, pixels, ..Frame::default() });
        assert_eq!(found[54..], [13, 12, 11, 16, 15, 14, 0, 0, 3, 2, 1, 6, 5, 4, 0, 0]);
        assert_eq!(
            (found.len(), &found[..6], &found[18..26]),
            (70, &b"BM\x46\0\0\0"[..], &[2, 0, 0, 0, 2, 0, 0, 0][..])
        );
        let site = served("127.0.0.1:0");
        assert_eq!(status_of(&site.get("/camera.bmp", &site.address())), "404");
    }

    #[test]
    fn an_address_in_use_is_an_error_with_the_address() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let (sender, _events) = bounded(1);
        let error = serve(address, Path::new("."), &Shared::new(sender, Arc::default())).err().unwrap();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
