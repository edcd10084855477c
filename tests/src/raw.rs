//! An app of bytes: it keeps everything that reached it, counts complete requests by a reading of its own, and answers by a
//! script, as an honest server or as a hostile one.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
};

/// What the app does once the head of a request is there.
#[derive(Clone, Debug)]
pub enum Step {
    /// Says these bytes.
    Say(Vec<u8>),
    /// Says these bytes again and again until the other side closes.
    Repeat(Vec<u8>),
    /// Waits until the request is complete.
    Hear,
    /// Says a 200 with the request's own head as its body.
    Echo,
    /// Waits until the other side has said something more, or has closed.
    More,
    /// Closes in order.
    Close,
    /// Closes with a reset.
    Reset,
}

/// The answer to the head of one request.
type Script = Arc<dyn Fn(&str) -> Vec<Step> + Send + Sync>;

/// How one connection of the app went.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    pub bytes: Vec<u8>,
    /// Requests that were complete, head and body.
    pub complete: usize,
    /// The other side has closed, or reset.
    pub is_over: bool,
}

/// The app.
#[derive(Clone)]
pub struct Raw(Arc<Inner>);

struct Inner {
    heard: Mutex<Vec<Heard>>,
    script: Mutex<Script>,
    grown: watch::Sender<u64>,
}

impl Default for Raw {
    fn default() -> Self {
        Self(Arc::new(Inner {
            heard: Mutex::default(),
            script: Mutex::new(Arc::new(|_| vec![Step::Hear, Step::Echo])),
            grown: watch::channel(0).0,
        }))
    }
}

impl Raw {
    /// From the next request on, answers like this.
    pub fn answer(&self, script: impl Fn(&str) -> Vec<Step> + Send + Sync + 'static) {
        *self.0.script.lock().unwrap() = Arc::new(script);
    }
    /// The honest script again.
    pub fn be_honest(&self) {
        self.answer(|_| vec![Step::Hear, Step::Echo]);
    }
    /// All connections so far.
    pub fn heard(&self) -> Vec<Heard> {
        self.0.heard.lock().unwrap().clone()
    }
    /// Every byte of every connection, in the order of the connections.
    pub fn bytes(&self) -> Vec<u8> {
        self.heard().into_iter().flat_map(|heard| heard.bytes).collect()
    }
    /// [`Raw::bytes`] as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
    /// Complete requests on all connections.
    pub fn complete(&self) -> usize {
        self.heard().iter().map(|heard| heard.complete).sum()
    }
    /// Resolves when what was heard so far satisfies `enough`; fails after ten seconds.
    pub async fn until(&self, what: &str, enough: impl Fn(&[Heard]) -> bool) {
        let mut grown = self.0.grown.subscribe();
        let waiting = async {
            while !enough(&self.0.heard.lock().unwrap()) {
                let _ = grown.changed().await;
                grown.borrow_and_update();
            }
        };
        if tokio::time::timeout(Duration::from_secs(10), waiting).await.is_err() {
            panic!("the app waited in vain until {what}: {:?}", self.text());
        }
    }

    /// Serves until the runtime ends.
    pub fn serve(&self, listener: TcpListener) {
        let raw = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(raw.clone().converse_tcp(stream));
            }
        });
    }

    async fn converse_tcp(self, mut stream: tokio::net::TcpStream) {
        let _ = stream.set_nodelay(true);
        if self.converse(&mut stream).await {
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Serves one connection of any kind; true: it ends with a reset.
    pub async fn converse<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S) -> bool {
        let number = {
            let mut heard = self.0.heard.lock().unwrap();
            heard.push(Heard::default());
            heard.len() - 1
        };
        self.0.grown.send_modify(|n| *n += 1);
        let mut at = 0;
        loop {
            let read = self.so_far(number);
            let rest = read.get(at..).unwrap_or_default();
            let Some(head) = head_of(rest) else {
                if !self.read(number, stream).await {
                    return false;
                }
                continue;
            };
            let script = self.0.script.lock().unwrap().clone();
            let text = String::from_utf8_lossy(&rest[..head]).into_owned();
            // Counted before it is answered, so that whoever has the answer finds it counted.
            let mut is_counted = false;
            for step in script(&text) {
                let said = match step {
                    Step::Say(bytes) => stream.write_all(&bytes).await.is_ok(),
                    Step::Repeat(bytes) => {
                        while stream.write_all(&bytes).await.is_ok() {}
                        self.over(number);
                        return false;
                    }
                    Step::Hear => {
                        while length_of(&self.so_far(number)[at..]).is_none() {
                            if !self.read(number, stream).await {
                                return false;
                            }
                        }
                        self.count(number);
                        is_counted = true;
                        true
                    }
                    Step::Echo => {
                        let answer =
                            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
                        stream.write_all(answer.as_bytes()).await.is_ok()
                    }
                    Step::More => self.read(number, stream).await,
                    Step::Close => {
                        let _ = stream.shutdown().await;
                        while self.read(number, stream).await {}
                        return false;
                    }
                    Step::Reset => return true,
                };
                if !said {
                    self.over(number);
                    return false;
                }
            }
            match length_of(&self.so_far(number)[at..]) {
                Some(length) => {
                    at += length;
                    if !is_counted {
                        self.count(number);
                    }
                }
                // The script did not care for the rest of the request; nothing behind it can be told from it.
                None => {
                    while self.read(number, stream).await {}
                    return false;
                }
            }
        }
    }

    fn so_far(&self, number: usize) -> Vec<u8> {
        self.0.heard.lock().unwrap()[number].bytes.clone()
    }

    fn count(&self, number: usize) {
        self.0.heard.lock().unwrap()[number].complete += 1;
        self.0.grown.send_modify(|n| *n += 1);
    }

    fn over(&self, number: usize) {
        self.0.heard.lock().unwrap()[number].is_over = true;
        self.0.grown.send_modify(|n| *n += 1);
    }

    async fn read<S: AsyncRead + Unpin>(&self, number: usize, stream: &mut S) -> bool {
        let mut buffer = [0; 4 << 10];
        let count = stream.read(&mut buffer).await.unwrap_or(0);
        self.0.heard.lock().unwrap()[number].bytes.extend_from_slice(&buffer[..count]);
        self.0.grown.send_modify(|n| *n += 1);
        if count == 0 {
            self.over(number);
        }
        count > 0
    }
}

/// The length of the head, when it is complete.
fn head_of(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// The length of head and body, when both are complete.
fn length_of(bytes: &[u8]) -> Option<usize> {
    let head = head_of(bytes)?;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if value("transfer-encoding:") == Some("chunked") {
        let mut at = head;
        loop {
            let line = bytes[at..].windows(2).position(|two| two == b"\r\n")?;
            let digits = std::str::from_utf8(&bytes[at..at + line]).ok()?;
            let size = usize::from_str_radix(digits, 16).ok()?;
            at += line + 2;
            if size == 0 {
                break;
            }
            at += size + 2;
            bytes.get(at - 1)?;
        }
        loop {
            let line = bytes[at..].windows(2).position(|two| two == b"\r\n")?;
            at += line + 2;
            if line == 0 {
                return Some(at);
            }
        }
    }
    let whole = head + value("content-length:").map_or(0, |length| length.parse().unwrap());
    (bytes.len() >= whole).then_some(whole)
}

#[test]
fn a_request_is_as_long_as_its_framing_says() {
    assert_eq!(length_of(b"GET / HTTP/1.1\r\n\r\nGET"), Some(18));
    assert_eq!(length_of(b"P / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab"), None);
    assert_eq!(length_of(b"P / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"), Some(38));
    let chunked = b"P / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n";
    assert_eq!(length_of(chunked), Some(chunked.len()));
    assert_eq!(length_of(&chunked[..chunked.len() - 2]), None);
}
