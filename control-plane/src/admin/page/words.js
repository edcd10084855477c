"use strict";
// Words: how numbers, times, names and elements are made. Everything that comes from the network becomes text here, never markup.
const SINCE = 600, EVERY = 5000, QUIET = 30, ROWS = 500, NOBODY = "(no identity)", OUTSIDE = "(outside)";
const byId = (id) => document.getElementById(id);

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
function drawn(name, attributes, text) {
  const made = document.createElementNS(byId("map").namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
// A lock, for exactly 100 % and a called service that takes nothing else.
function lock() {
  const made = drawn("svg", { viewBox: "0 0 10 12", class: "lock", role: "img", "aria-label": "only mutual TLS" });
  made.append(drawn("path", { d: "M0 5h10v7H0z M2 5V3.2a3 3 0 0 1 6 0V5H6.4V3.3a1.4 1.4 0 0 0-2.8 0V5z" }));
  return made;
}

const cell = (text, kind) => ({ text: String(text), kind });
const number = (value, kind) => cell(value, kind ? "number " + kind : "number");
const bad = (count) => count === 0 ? number("0") : number("✗ " + count, "bad");
const short = (identity) => identity.replace("spiffe://", "");
const seconds = (from, to) => Math.max(0, Math.round((Date.parse(to) - Date.parse(from)) / 1000));
const counted = (count, one, many) => count + " " + (count === 1 ? one : many);

function length(all) {
  if (all < 120) return all + " s";
  if (all < 7200) return Math.floor(all / 60) + " min";
  return all < 172800 ? Math.floor(all / 3600) + " h" : Math.floor(all / 86400) + " d";
}
const between = (from, to) => from === null || to === null ? "–" : length(seconds(from, to));
function took(micros) {
  if (micros === null || micros === undefined) return "–";
  if (micros < 1000) return micros + " µs";
  return micros < 1e6 ? (micros / 1e3).toFixed(1) + " ms" : (micros / 1e6).toFixed(1) + " s";
}
// Exactly 100 % only when it is all of them.
function percent(part, whole) {
  return (part === whole ? "100" : part === 0 ? "0" : Math.min(99.99, part / whole * 100).toFixed(2)) + " %";
}

// Who is at an end: of a workload in the mesh the account that its certificate proves, the namespace apart.
function named(id) {
  if (id === NOBODY) return { name: "no identity", under: "plaintext" };
  if (id === OUTSIDE) return { name: "outside", under: "not in the mesh" };
  const parts = /^([a-z0-9.-]+)\/([a-z0-9.-]+)$/.exec(id);
  if (parts !== null) return { name: parts[2], under: parts[1] };
  return { name: short(id), under: "outside" };
}
const called = short;
function node_of(identity) {
  const parts = /^spiffe:\/\/([^/]+)\/ns\/([^/]+)\/sa\/([^/]+)$/.exec(identity);
  return parts !== null && parts[1] === domain ? parts[2] + "/" + parts[3] : identity;
}
let domain = "";

// A table that is made anew; who has scrolled or is in it stays there.
function show(place, label, heads, rows, nothing) {
  const wanted = byId("find").value.trim().toLowerCase();
  const found = rows.filter((row) => !wanted || row.some((one) => one.text.toLowerCase().includes(wanted)));
  const target = byId(place), scrolled = target.firstElementChild?.scrollTop ?? 0;
  const held = target.contains(document.activeElement) ? document.activeElement.dataset.key ?? "" : null;
  if (found.length === 0) {
    target.replaceChildren(element("p", rows.length === 0 ? nothing : "nothing here has that in it", "empty"));
    return;
  }
  const scroll = element("div", undefined, "scroll"), table = element("table"), head = element("tr"), body = element("tbody");
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", label);
  heads.forEach((name, at) => {
    const one = element("th", name, found[0][at].kind?.startsWith("number") ? "number" : "");
    one.scope = "col";
    head.append(one);
  });
  for (const row of found.slice(0, ROWS)) {
    const line = element("tr", undefined, row.is_new ? "new" : "");
    for (const one of row) {
      const made = element("td", one.lines ? undefined : one.text, one.kind);
      for (const [text, kind] of one.lines ?? []) made.append(element("div", text, kind));
      if (one.lock) made.prepend(lock());
      if (one.meter !== undefined) {
        const meter = element("meter");
        Object.assign(meter, { value: one.meter, low: 0.2, high: 0.5, optimum: 1 });
        meter.setAttribute("aria-hidden", "true");
        made.append(" ", meter);
      }
      if (one.command) made.append(" ", command(one.command));
      line.append(made);
    }
    body.append(line);
  }
  const top = element("thead");
  top.append(head);
  table.append(top, body);
  scroll.append(table);
  target.replaceChildren(scroll);
  if (found.length > ROWS) target.append(element("p", "and " + (found.length - ROWS) + " more: find by name, or ask on the command line", "note"));
  scroll.scrollTop = scrolled;
  if (held !== null) (scroll.querySelector('[data-key="' + CSS.escape(held) + '"]') ?? scroll).focus({ preventScroll: true });
}

// A command that prints the same: pressed, it is copied.
function command(text) {
  const made = element("button", text, "command");
  made.type = "button";
  made.dataset.key = text;
  return made;
}
document.addEventListener("click", (event) => {
  const pressed = event.target.closest("button.command");
  if (pressed) navigator.clipboard?.writeText(pressed.textContent).then(() => say("copied: " + pressed.textContent), () => {});
});
function say(text) { byId("said").textContent = text; }
