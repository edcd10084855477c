//! What evidence costs: the same pair of ours that tells nothing but metrics, with the access log, with spans, with all of it sent by
//! OTLP, and while somebody reads the metrics ten times a second.

use crate::{
    USUAL, documents, load,
    pairs::{APP_OTLP_PORT, Pair, SERVER_IP},
    stage::{Stage, Told},
};
use postern_benches::budgets::{Measured, median};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// Where a sidecar's metrics are, from inside its network namespace.
const METRICS: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 15090);
const BETWEEN_SCRAPES: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setting {
    Metrics,
    Log,
    OneSpanInAHundred,
    AllSpans,
    AllByOtlp,
    Scraped,
}

const SETTINGS: [Setting; 6] = [
    Setting::Metrics,
    Setting::Log,
    Setting::OneSpanInAHundred,
    Setting::AllSpans,
    Setting::AllByOtlp,
    Setting::Scraped,
];

impl Setting {
    fn name(self) -> &'static str {
        match self {
            Self::Metrics => "metrics only",
            Self::Log => "JSON access log",
            Self::OneSpanInAHundred => "log, traces at 1 %",
            Self::AllSpans => "log, traces at 100 %",
            Self::AllByOtlp => "log, and by OTLP traces at 1 %, metrics, log",
            Self::Scraped => "log, scraped 10 times a second",
        }
    }

    /// What it is compared with.
    fn base(self) -> Option<Self> {
        match self {
            Self::Metrics => None,
            Self::Log => Some(Self::Metrics),
            _ => Some(Self::Log),
        }
    }

    fn told(self) -> Told {
        let endpoint = format!("http://{}", SocketAddr::from((SERVER_IP, APP_OTLP_PORT)));
        let sampled = |rate: &str| {
            vec![
                ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("{endpoint}/v1/traces")),
                ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio".into()),
                ("OTEL_TRACES_SAMPLER_ARG", rate.into()),
            ]
        };
        let variables = match self {
            Self::Metrics | Self::Log | Self::Scraped => Vec::new(),
            Self::OneSpanInAHundred => sampled("0.01"),
            Self::AllSpans => sampled("1"),
            Self::AllByOtlp => {
                let mut all = sampled("0.01");
                all[0] = ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
                all.push(("OTEL_METRIC_EXPORT_INTERVAL", "1000".into()));
                all
            }
        };
        Told { access_log: self != Self::Metrics, variables }
    }
}

/// (name, requests a second or 0 for as many as there are answers, connections)
const LOADS: [(&str, u32, u32); 2] = [("1,000 rps", 1000, 16), ("saturated", 0, 64)];

#[derive(Clone, Copy)]
struct Window {
    setting: Setting,
    load: &'static str,
    /// Milliseconds on cores per 1,000 requests, both halves.
    cpu: f64,
    p50: f64,
    p99: f64,
}

/// Measures all settings in turns.
pub fn all(rounds: usize, seconds: f64) -> Measured {
    let stage = Stage::new(&[Pair::Postern], Vec::new(), documents::SMALL);
    let (mut windows, mut scrapes) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Whoever is first in each round is no longer first in the next.
        for at in 0..SETTINGS.len() {
            let setting = SETTINGS[(at + round) % SETTINGS.len()];
            let halves = stage.start(Pair::Postern, None, &setting.told());
            let asked = |rate, connections, seconds| load::Arguments {
                path: USUAL.into(),
                rate,
                connections,
                seconds,
                ..stage.arguments(Pair::Postern, halves.as_ref())
            };
            stage.load(&asked(0, 64, seconds.min(0.5)));
            for (name, rate, connections) in LOADS {
                let asked = asked(rate, connections, seconds);
                let outcome = if setting == Setting::Scraped {
                    scraped(|| stage.load(&asked), &mut scrapes)
                } else {
                    stage.load(&asked)
                };
                assert_eq!(outcome.errors, 0, "{}, {name}: {outcome:?}", setting.name());
                let [p50, _, p99, _] = outcome.percentiles;
                windows.push(Window { setting, load: name, cpu: outcome.cpu.iter().sum(), p50, p99 });
            }
        }
    }
    print(&windows, &scrapes)
}

/// Reads the metrics of the server's sidecar again and again while something goes on; each time in milliseconds.
fn scraped<T>(run: impl FnOnce() -> T, times: &mut Vec<f64>) -> T {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut times = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let begin = Instant::now();
                let mut stream = TcpStream::connect(METRICS).expect("the metrics are there");
                stream
                    .write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                    .expect("a request");
                let mut page = String::new();
                stream.read_to_string(&mut page).expect("a page");
                assert!(page.contains("istio_requests_total{"), "{page}");
                times.push(begin.elapsed().as_secs_f64() * 1000.0);
                std::thread::sleep(BETWEEN_SCRAPES);
            }
            times
        });
        let result = run();
        is_over.store(true, Ordering::Relaxed);
        times.extend(reader.join().expect("it ends"));
        result
    })
}

fn print(windows: &[Window], scrapes: &[f64]) -> Measured {
    let mut measured = Measured::new();
    for (load, ..) in LOADS {
        println!(
            "\n{load}\n| told | CPU ms per 1,000 | to what it is compared with | p50 µs | p99 µs (best) |\n|---|---|---|---|---|"
        );
        for setting in SETTINGS {
            let of = |wanted: Setting, figure: fn(&Window) -> f64| -> Vec<f64> {
                let its = windows.iter().filter(|window| window.setting == wanted && window.load == load);
                its.map(figure).collect()
            };
            let cpu = of(setting, |window| window.cpu);
            let compared = setting.base().map(|base| {
                let base = of(base, |window| window.cpu);
                let ratios: Vec<f64> = cpu.iter().zip(&base).map(|(cpu, base)| cpu / base).collect();
                let ratio = median(&ratios);
                measured.insert(format!("{load}/{}/CPU", setting.name()), ratio);
                format!("{ratio:.3}")
            });
            let p99 = of(setting, |window| window.p99);
            println!(
                "| {} | {:.1} | {} | {:.0} | {:.0} ({:.0}) |",
                setting.name(),
                median(&cpu),
                compared.unwrap_or_default(),
                median(&of(setting, |window| window.p50)),
                median(&p99),
                p99.iter().copied().fold(f64::INFINITY, f64::min),
            );
        }
    }
    if !scrapes.is_empty() {
        let most = scrapes.iter().copied().fold(0.0, f64::max);
        println!("\nscrapes: {}, {:.2} ms in the median, {most:.1} at most", scrapes.len(), median(scrapes));
    }
    measured
}
