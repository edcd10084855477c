// The live list of decisions: denials as they were told before, then what each sidecar reports, as it comes. Calls that were let in are summed up.
const KEPT = 200;
let decisions = [], waiting = 0, watching = false, refused = false;

function why(one) {
  const rule = one.policy === null ? "" : ": " + one.policy + (one.rule === null ? "" : " rule " + one.rule);
  return one.reason + rule + (one.closest === null ? "" : "; closest: " + one.closest);
}
function ends(one) {
  const own = node_of(one.identity), other = one.peer === null ? null : node_of(one.peer);
  return one.direction === "inbound" ? [other ?? NOBODY, own] : [own, one.service ?? other ?? OUTSIDE];
}
function denial(one) {
  const [from, to] = ends(one);
  return {
    key: JSON.stringify([from, to, one.method, one.path, one.port, one.reason, one.policy, one.rule]), is_denied: true, at: one.last, from, to, count: one.count,
    request: one.method === null ? "a connection" : one.method + " " + one.path, code: one.status ?? "reset", why: why(one), id: one.decisions.at(-1) ?? null, first: false,
  };
}
function allowed(from, to, count, at, why) {
  return { key: JSON.stringify([from, to, "allowed"]), is_denied: false, at, from, to, count, request: null, code: "", why, id: null };
}
// One of a kind has one row, with the latest on top.
function put(one, is_new) {
  const known = decisions.findIndex((other) => other.key === one.key);
  if (known >= 0) {
    if (is_new) one.count += decisions[known].count;
    if (one.why === "") one.why = decisions[known].why;
    decisions.splice(known, 1);
  }
  one.is_new = is_new;
  decisions.push(one);
}
function take(event) {
  for (const one of event.denials) put(denial(one), true);
  const to = node_of(event.identity), by = event.rules.filter((rule) => rule.matched > 0 && says.get(rule.policy) !== "DENY");
  // A rule may be told with another report than the call that it decided.
  const nobody_asks = ![...says.values()].includes("ALLOW");
  const reason = by.length ? by.map((rule) => rule.policy + (rule.rule === null ? "" : " rule " + rule.rule)).join(", ") : nobody_asks ? "no ALLOW policy asks for one" : "";
  for (const one of event.allowed) {
    put(allowed(one.peer === null ? NOBODY : node_of(one.peer), to, one.calls, event.now, (by.length > 1 ? "one of: " : "") + reason), true);
  }
  for (const rule of event.rules) {
    if (rule.would_deny > 0) put({ key: JSON.stringify([rule.policy, rule.rule, to]), is_denied: null, at: event.now, from: null, to, count: rule.would_deny, request: null, code: "", why: "dry run: " + rule.policy + (rule.rule === null ? "" : " rule " + rule.rule) + " would deny", id: null }, true);
  }
  settle();
  const denied = event.denials.at(-1);
  if (denied) {
    const one = denial(denied);
    say("denied: " + one.request + " from " + called(one.from) + " to " + called(one.to));
  }
}
// Allowed rows never push a denial out.
function settle() {
  decisions.sort((a, b) => (a.at < b.at ? 1 : a.at > b.at ? -1 : 0));
  while (decisions.length > KEPT) {
    const last = decisions.findLastIndex((one) => one.is_denied === false);
    decisions.splice(last >= 0 ? last : decisions.length - 1, 1);
  }
}
async function load_decisions() {
  const page = await ask("denials?since=" + SINCE);
  for (const one of page.denials) put(denial(one), false);
  for (const edge of last.topology.edges.slice(0, 50)) if (edge.seen_by === "server" && edge.calls > edge.denied) put(allowed(edge.from, edge.to, edge.calls - edge.denied, edge.last, ""), false);
  settle();
}
function draw_decisions(now) {
  const with_allowed = byId("allowed").checked;
  const shown = decisions.filter((one) => with_allowed || one.is_denied !== false);
  show("decisions", "Decisions, the latest first", ["When", "Decision", "Times", "Call, and why"], shown.map((one) => {
    const verdict = one.is_denied === true ? cell("✗ " + one.code, "bad tight") : one.is_denied === false ? cell("✓ allowed", "good tight") : cell("! would deny", "odd tight");
    const call = [[(one.from === null ? "calls" : called(one.from)) + " → " + called(one.to), ""], [one.request ?? "", "request"], [one.why, "why"]].filter((part) => part[0] !== "");
    const row = [cell(between(one.at, now) + " ago", "tight"), verdict, number(one.count), { ...cell(call.map((part) => part[0]).join(" "), "long"), lines: call, command: one.id ? "postern why --id " + one.id : undefined }];
    row.is_new = one.is_new;
    one.is_new = false;
    return row;
  }), decisions.length ? "nothing was denied in the last " + SINCE / 60 + " minutes" : "nothing was decided in the last " + SINCE / 60 + " minutes");
  const note = refused ? "! not live: eight others watch already; this is as it was when the page was opened" : watching ? "Live: each sidecar tells every ten seconds (with postern up, every two) what it has decided. Calls that were allowed are summed up." : "… waiting for the control plane";
  byId("decisions-note").textContent = paused && waiting ? "paused; " + counted(waiting, "report", "reports") + " came since" : note;
}

let held_back = [];
function watch() {
  const source = new EventSource("events");
  source.addEventListener("open", () => { watching = true; refused = false; load_decisions().then(draw, () => {}); });
  source.addEventListener("now", () => { news = Date.now(); });
  source.addEventListener("decided", (event) => {
    news = Date.now();
    const told = JSON.parse(event.data);
    if (paused) {
      waiting += 1;
      held_back = [...held_back, told].slice(-KEPT);
      return soon();
    }
    take(told);
    soon();
  });
  source.addEventListener("error", () => {
    watching = false;
    // It comes again by itself, unless it was refused.
    if (source.readyState === EventSource.CLOSED) {
      refused = true;
      setTimeout(watch, 15000);
    }
    soon();
  });
}
// Three hundred sidecars may tell at once: one drawing for all of them.
let is_soon = false;
function soon() {
  if (is_soon) return;
  is_soon = true;
  setTimeout(() => { is_soon = false; if (last) draw_decisions(last.topology.now > decisions_now() ? last.topology.now : decisions_now()); }, 200);
}
function decisions_now() { return decisions.length ? decisions[0].at : ""; }
