//! The generator of load: one thread, connections that are written to and read from with nothing in between, and latency
//! from the moment at which a request was due, so that a proxy that stalls cannot hide it (coordinated omission).

use crate::grpc;
use clap::Parser;
use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use postern_benches::process::{cpu, resident_kib};
use serde::{Deserialize, Serialize};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::SocketAddr,
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, unix::pipe},
    sync::{Notify, Semaphore},
    task::LocalSet,
};

/// What is asked for.
#[derive(Clone, Debug, Parser)]
pub struct Arguments {
    /// Whom to ask
    #[arg(long)]
    pub target: SocketAddr,
    /// Path
    #[arg(long, default_value = "/api/items")]
    pub path: String,
    /// Requests per second, due at even distances; 0: as many as there are answers
    #[arg(long, default_value_t = 0)]
    pub rate: u32,
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 16)]
    pub connections: u32,
    /// A new connection for each request
    #[arg(long)]
    pub fresh: bool,
    /// gRPC calls, side by side on four connections: `connections` is how many at a time
    #[arg(long)]
    pub grpc: bool,
    /// Length of the window, after as much as a tenth of it to warm up
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Processes whose time on cores is counted
    #[arg(long, value_delimiter = ',')]
    pub processes: Vec<u32>,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Answers in the window.
    pub requests: u64,
    /// Anything but 200, or a connection that ended.
    pub errors: u64,
    /// Requests that were due and not sent at the end of the window.
    pub waiting: u64,
    /// Of the window.
    pub seconds: f64,
    /// Microseconds from due to the last byte: 50th, 90th, 99th, 99.9th percentile.
    pub percentiles: [f64; 4],
    /// Milliseconds on cores per 1,000 requests, for each process.
    pub cpu: Vec<f64>,
    /// Resident KiB of each process when all connections were open and nothing was asked for yet.
    pub resident: Vec<u64>,
}

struct Window {
    path: String,
    target: SocketAddr,
    begin: Cell<Option<Instant>>,
    over: Cell<bool>,
    due: RefCell<VecDeque<Instant>>,
    news: Notify,
    taken: RefCell<Vec<u32>>,
    errors: Cell<u64>,
    opening: Semaphore,
    opened: Cell<usize>,
    opened_one: Notify,
}

/// Connections that are opened at the same time before a window.
const OPENED_AT_ONCE: usize = 32;
/// Connections that carry all gRPC calls.
const GRPC_CONNECTIONS: usize = 4;

/// Makes load for the length of the window.
pub fn run(arguments: &Arguments) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, measure(arguments))
}

async fn measure(arguments: &Arguments) -> Outcome {
    let window = Rc::new(Window {
        path: arguments.path.clone(),
        target: arguments.target,
        begin: Cell::new(None),
        over: Cell::new(false),
        due: RefCell::default(),
        news: Notify::new(),
        taken: RefCell::default(),
        errors: Cell::new(0),
        opening: Semaphore::new(OPENED_AT_ONCE),
        opened: Cell::new(0),
        opened_one: Notify::new(),
    });
    let mut shared = Vec::new();
    for _ in 0..if arguments.grpc { GRPC_CONNECTIONS } else { 0 } {
        shared.push(grpc::connect(arguments.target).await.unwrap());
    }
    let connections: Vec<_> = (0..arguments.connections as usize)
        .map(|number| {
            let (window, open, fresh) = (window.clone(), arguments.rate > 0, arguments.fresh);
            let shared = shared.get(number % GRPC_CONNECTIONS).cloned();
            tokio::task::spawn_local(async move {
                match shared {
                    Some(shared) => window.call(open, shared).await,
                    None => window.ask(open, fresh).await,
                }
            })
        })
        .collect();
    while window.opened.get() < connections.len() {
        window.opened_one.notified().await;
    }
    let resident = arguments.processes.iter().map(|process| resident_kib(*process)).collect();
    let length = Duration::from_secs_f64(arguments.seconds);
    let warm = length / 10;
    let spent = |processes: &[u32]| processes.iter().map(|process| cpu(*process)).collect::<Vec<_>>();
    let (before, begin);
    if arguments.rate > 0 {
        let step = Duration::from_secs(1) / arguments.rate;
        window.release(warm, step).await;
        (before, begin) = (spent(&arguments.processes), Instant::now());
        window.begin.set(Some(begin));
        window.release(length, step).await;
    } else {
        tokio::time::sleep(warm).await;
        (before, begin) = (spent(&arguments.processes), Instant::now());
        window.begin.set(Some(begin));
        tokio::time::sleep(length).await;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let after = spent(&arguments.processes);
    let requests = window.taken.borrow().len() as u64;
    let waiting = window.due.borrow().len() as u64;
    window.over.set(true);
    connections.iter().for_each(tokio::task::JoinHandle::abort);
    let mut taken = window.taken.borrow_mut();
    taken.sort_unstable();
    let at = |share: f64| {
        let place = ((taken.len() as f64 * share).ceil() as usize).saturating_sub(1);
        taken.get(place).map_or(0.0, |nanoseconds| f64::from(*nanoseconds) / 1000.0)
    };
    Outcome {
        requests,
        errors: window.errors.get(),
        resident,
        waiting,
        seconds,
        percentiles: [0.5, 0.9, 0.99, 0.999].map(at),
        cpu: before
            .iter()
            .zip(&after)
            .map(|(before, after)| (*after - *before).as_secs_f64() * 1e6 / requests.max(1) as f64)
            .collect(),
    }
}

impl Window {
    /// Requests become due, one each `step`, for `length`; the kernel's timer is exact where a runtime's wheel has milliseconds.
    async fn release(&self, length: Duration, step: Duration) {
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)
                .unwrap();
        timer.set(Expiration::Interval(TimeSpec::from_duration(step)), TimerSetTimeFlags::empty()).unwrap();
        // A timer is read like a pipe: it is there when it has expired.
        let timer = pipe::Receiver::from_owned_fd_unchecked(OwnedFd::from(timer)).unwrap();
        let (begin, mut released) = (Instant::now(), 0);
        let all = (length.as_secs_f64() / step.as_secs_f64()) as u32;
        while released < all {
            timer.readable().await.unwrap();
            // How many have passed the clock says itself.
            let _ = timer.try_read(&mut [0; 8]);
            while released < all && begin + step * (released + 1) <= Instant::now() {
                released += 1;
                self.due.borrow_mut().push_back(begin + step * released);
                self.news.notify_one();
            }
        }
    }

    async fn next(&self, open: bool) -> Instant {
        loop {
            if !open {
                return Instant::now();
            }
            if let Some(due) = self.due.borrow_mut().pop_front() {
                return due;
            }
            self.news.notified().await;
        }
    }

    async fn ask(&self, open: bool, fresh: bool) {
        let head = format!(
            "GET {} HTTP/1.1\r\nhost: app.mesh\r\nuser-agent: bench/1\r\naccept: */*\r\n\r\n",
            self.path
        );
        let (mut stream, mut buffer) = (None, Vec::with_capacity(4096));
        if !fresh {
            // Opened, and proven by a request, before anything is measured.
            let turn = self.opening.acquire().await;
            if self.exchange(&mut stream, head.as_bytes(), &mut buffer).await.is_err() {
                stream = None;
            }
            drop(turn);
        }
        self.opened.set(self.opened.get() + 1);
        self.opened_one.notify_one();
        while !self.over.get() {
            let due = self.next(open).await;
            let answered = self.exchange(&mut stream, head.as_bytes(), &mut buffer).await;
            if fresh || answered.is_err() {
                stream = None;
            }
            self.note(due, answered).await;
        }
    }

    /// The same by gRPC, on a connection that others use as well.
    async fn call(&self, open: bool, connection: grpc::Connection) {
        if let Err(cause) = grpc::call(&connection, &self.path).await {
            eprintln!("gRPC: {cause}");
        }
        self.opened.set(self.opened.get() + 1);
        self.opened_one.notify_one();
        while !self.over.get() {
            let due = self.next(open).await;
            let answered = grpc::call(&connection, &self.path).await;
            self.note(due, answered).await;
        }
    }

    async fn note(&self, due: Instant, answered: std::io::Result<()>) {
        if self.begin.get().is_none_or(|begin| due < begin) || self.over.get() {
            return;
        }
        match answered {
            Ok(()) => {
                let nanoseconds = u32::try_from(due.elapsed().as_nanos()).unwrap_or(u32::MAX);
                self.taken.borrow_mut().push(nanoseconds);
            }
            Err(_) => {
                self.errors.set(self.errors.get() + 1);
                // Whoever refuses all of them is not to be asked a million times.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    async fn exchange(
        &self,
        kept: &mut Option<TcpStream>,
        head: &[u8],
        buffer: &mut Vec<u8>,
    ) -> std::io::Result<()> {
        let stream = match kept {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(self.target).await?;
                stream.set_nodelay(true)?;
                // Thousands of ports that wait for their last packets would be missed by the next window.
                stream.set_zero_linger()?;
                kept.insert(stream)
            }
        };
        stream.write_all(head).await?;
        buffer.clear();
        let mut left: Option<usize> = None;
        let mut seen = 0;
        loop {
            if stream.read_buf(buffer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if left.is_none()
                && let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n")
            {
                let head = std::str::from_utf8(&buffer[..end]).map_err(std::io::Error::other)?;
                if !head.starts_with("HTTP/1.1 200") {
                    return Err(std::io::Error::other(head.to_owned()));
                }
                let length = head.split("\r\n").find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
                });
                left = Some(length.ok_or_else(|| std::io::Error::other("no length"))?);
                seen = buffer.len() - end - 4;
                buffer.clear();
            } else if left.is_some() {
                seen += buffer.len();
                buffer.clear();
            }
            if left == Some(seen) {
                return Ok(());
            }
        }
    }
}
