//! A headless Chromium with a page open, driven through its DevTools protocol over two pipes: no port, nothing that others could reach.

use crate::foreign;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

/// Nothing that a test waits for takes longer.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long the browser may be silent; longer, as it may be asked to wait for something.
const ANSWER: Duration = Duration::from_secs(40);

/// A browser, and what its page complained of. Dropping it ends it.
pub struct Browser {
    child: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    next: u64,
    session: Option<String>,
    complaints: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// `None` when there is none to be had, which is said on stderr; with `POSTERN_BROWSER_REQUIRED=1` that is a failure.
    pub fn start() -> Option<Self> {
        let program =
            foreign::by_script("browser.sh", "POSTERN_BROWSER_REQUIRED", "the page was tried in no browser")?;
        let profile = tempfile::tempdir().unwrap();
        // The browser reads commands from descriptor 3 and writes to 4.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1"])
            .arg(program)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--remote-debugging-pipe",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, messages) = channel();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            while answers.read_until(0, &mut bytes).is_ok_and(|read| read > 0) {
                let message =
                    serde_json::from_slice(bytes.trim_ascii_end().strip_suffix(b"\0").unwrap_or(&bytes));
                if message.is_err() || sender.send(message.unwrap()).is_err() {
                    return;
                }
                bytes.clear();
            }
        });
        let commands = child.stdin.take().unwrap();
        let mut browser = Self {
            child,
            commands,
            messages,
            next: 0,
            session: None,
            complaints: Vec::new(),
            _profile: profile,
        };
        let target = browser.send("Target.createTarget", json!({"url": "about:blank"}));
        let attached =
            browser.send("Target.attachToTarget", json!({"targetId": target["targetId"], "flatten": true}));
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Runtime", "Log", "Page"] {
            browser.send(&format!("{domain}.enable"), json!({}));
        }
        browser.appear("light", 1280, 1000);
        Some(browser)
    }

    /// Light or dark, and how large.
    pub fn appear(&mut self, scheme: &str, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.send("Emulation.setDeviceMetricsOverride", size);
        let features = json!([
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]);
        self.send("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// Opens a page.
    pub fn open(&mut self, url: &str) {
        let opened = self.send("Page.navigate", json!({"url": url}));
        assert!(opened.get("errorText").is_none(), "{opened}");
    }

    /// The value of an expression in the page.
    pub fn value(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.send("Runtime.evaluate", asked);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer:#}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true, which the page looks at whenever it has changed; fails with what the page shows.
    pub fn until(&mut self, expression: &str) {
        let milliseconds = DEADLINE.as_millis();
        let promise = format!(
            "new Promise((answer) => {{
                const changes = new MutationObserver(() => look());
                const late = setTimeout(() => end('never'), {milliseconds});
                const end = (how) => {{ changes.disconnect(); clearTimeout(late); answer(how); }};
                const look = () => {{
                    try {{ if (({expression}) === true) end('true'); }} catch (error) {{ end(String(error)); }}
                }};
                changes.observe(document, {{subtree: true, childList: true, attributes: true, characterData: true}});
                look();
            }})"
        );
        let how = self.value(&promise);
        if how != "true" {
            let shown = self.value("document.body.innerText");
            panic!("{how}: {expression}\n{}", shown.as_str().unwrap_or_default());
        }
    }

    /// Presses a key by its name: `Tab`, `Enter`, `Escape`, ` `.
    pub fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            "Escape" => (27, ""),
            " " => (32, " "),
            other => panic!("no code for the key {other}"),
        };
        let name = if key == " " { "Space" } else { key };
        let down = if text.is_empty() { "rawKeyDown" } else { "keyDown" };
        for kind in [down, "keyUp"] {
            let event = json!({"type": kind, "key": key, "code": name, "windowsVirtualKeyCode": code, "text": if kind == down { text } else { "" }});
            self.send("Input.dispatchKeyEvent", event);
        }
    }

    /// Writes into what has the focus.
    pub fn write(&mut self, text: &str) {
        self.send("Input.insertText", json!({"text": text}));
    }

    /// A picture of what is to be seen, as PNG.
    pub fn picture(&mut self, file: &Path) {
        let picture = self.send("Page.captureScreenshot", json!({"format": "png"}));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, STANDARD.decode(picture["data"].as_str().unwrap()).unwrap()).unwrap();
    }

    /// What the browser and the page's scripts have complained of: errors, and breaches of the content policy.
    pub fn complaints(&mut self) -> Vec<String> {
        self.value("0");
        std::mem::take(&mut self.complaints)
    }

    fn send(&mut self, method: &str, parameters: Value) -> Value {
        self.next += 1;
        let mut command = json!({"id": self.next, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            command["sessionId"] = session.as_str().into();
        }
        self.commands.write_all(format!("{command}\0").as_bytes()).unwrap();
        loop {
            let message = self
                .messages
                .recv_timeout(ANSWER)
                .unwrap_or_else(|_| panic!("the browser does not answer {method}"));
            if message["id"] == self.next {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].clone();
            }
            if matches!(
                message["method"].as_str(),
                Some("Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded")
            ) {
                self.complaints.push(message["params"].to_string());
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
