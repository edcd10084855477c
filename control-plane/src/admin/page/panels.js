// The other panels, and the beat: what is asked every five seconds, and when what is shown is old.
let last = null, paused = false, news = null, says = new Map();

function draw_facts() {
  const { status, topology } = last, now = status.now;
  const synced = status.workloads.filter((one) => one.state === "synced").length, all = status.workloads.length;
  const sum = (of) => topology.edges.reduce((sum, edge) => sum + of(edge), 0);
  // What leaves the mesh can have no mutual TLS.
  const inside = (edge, count) => edge.seen_by === "server" ? count : 0;
  const served = sum((edge) => inside(edge, edge.served)), mutual = sum((edge) => inside(edge, edge.mutual_tls)), denied = sum((edge) => edge.denied);
  const lives = status.workloads.filter((one) => one.certificate_not_after !== null).sort((a, b) => a.certificate_not_after < b.certificate_not_after ? -1 : 1);
  const told = [
    cell(topology.trust_domain, "soft"),
    all === 0 ? cell("no sidecars yet", "soft") : cell((synced === all ? "✓ " : "✗ ") + synced + "/" + all + " sidecars in sync", synced === all ? "good" : "bad"),
    served === 0 ? cell("mutual TLS: no calls yet", "soft") : cell((mutual === served ? "✓ " : "! ") + percent(mutual, served) + " mutual TLS (" + mutual + "/" + served + ")", mutual === served ? "good" : "odd"),
    cell((denied ? "✗ " : "") + denied + " denied in " + SINCE / 60 + " min", denied ? "bad" : ""),
  ];
  if (lives.length) told.push(cell("next certificate ends in " + between(now, lives[0].certificate_not_after) + " (" + lives[0].pod + ")"));
  if (topology.lost.overflow || topology.lost.dropped) told.push(cell("! not all is shown: postern top says how much", "odd"));
  if (paused) told.unshift(cell("paused", "odd"));
  byId("facts").replaceChildren(...told.map((one) => element("li", one.text, one.kind)));
}

function draw_workloads() {
  const { status, authorities } = last, now = status.now;
  const states = { "synced": ["✓ in sync", "good"], "behind": ["… behind", "odd"], "refused": ["✗ refused: keeps its last good policy", "bad"], "not-connected": ["✗ not connected", "bad"] };
  const life = (end, share) => {
    const one = cell(between(now, end), "tight");
    if (share !== null && end !== null) one.meter = share;
    return one;
  };
  const rows = authorities.authorities.filter((one) => one.kind !== "jwt-key").map((one) =>
    [cell(one.kind), cell(one.revoked ? "✗ revoked" : one.tainted ? "! tainted" : one.slot, one.revoked || one.tainted ? "bad" : ""), life(one.not_after, one.remaining), cell(one.subject || one.id.slice(0, 8))]);
  // What needs a look first, then what ends first.
  const rank = (one) => one.state === "synced" ? 1 : 0;
  const sorted = [...status.workloads].sort((a, b) => rank(a) - rank(b) || ((a.certificate_not_after ?? "") < (b.certificate_not_after ?? "") ? -1 : 1));
  for (const one of sorted) {
    const [state, kind] = states[one.state] ?? [one.state, "odd"];
    const since = one.policy_since === null ? "" : " for " + between(one.policy_since, now);
    rows.push([{ ...cell(one.namespace + "/" + one.pod), lines: [[one.pod, ""], [one.namespace, "soft"]] }, cell(one.refusal === null ? state + since : state + ": " + one.refusal, kind), life(one.certificate_not_after, one.certificate_remaining), cell(one.identity === null ? "–" : node_of(one.identity))]);
  }
  show("workloads", "Sidecars and certificates", ["Pod or authority", "State", "Certificate left", "Identity"], rows, "no pod has a sidecar");
}

function draw_latency() {
  const edges = last.topology.edges.filter((edge) => edge.p50_micros !== null).sort((a, b) => b.calls - a.calls);
  const pair = (half, most) => number(half === null ? "–" : took(half) + " / " + took(most));
  show("latency", "Latency of each pair, half and 99 of 100 calls", ["From", "To", "Whole", "Caller's part", "Called's part"], edges.map((edge) =>
    [end_cell(edge.from), end_cell(edge.to), pair(edge.p50_micros, edge.p99_micros), pair(edge.client_p50_micros, edge.client_p99_micros), pair(edge.server_p50_micros, edge.server_p99_micros)]),
  "no calls in the last " + SINCE / 60 + " minutes");
}

function draw_policies() {
  const { policies } = last, now = policies.now;
  show("policies", "Policies", ["Policy", "Kind", "Says", "Enforced by", "Matched", "Last match", "Would deny", "Would allow"], policies.policies.map((one) => {
    const by = one.enforced_by + "/" + one.selected, is_all = one.enforced_by === one.selected;
    const waits = one.waiting_for.length ? "; not by " + one.waiting_for.join(", ") + (one.selected - one.enforced_by > one.waiting_for.length ? ", …" : "") : "";
    const word = one.dry_run ? "tried by " : "";
    return [cell(one.namespace + "/" + one.name), cell(one.kind), cell(one.dry_run ? "! " + one.says + ", dry run" : one.says, one.dry_run ? "odd" : ""),
      one.selected === 0 ? cell("! selects nobody", "odd") : cell((is_all ? "✓ " : "✗ ") + word + by + " sidecars" + waits, is_all ? "good" : "bad"),
      number(one.matched ?? "–"), number(one.last === null ? "–" : between(one.last, now) + " ago"), one.would_deny ? number("! " + one.would_deny, "odd") : number(0), number(one.would_allow)];
  }), "there are no policies: every call is allowed, with mutual TLS and without");
}

function draw() {
  if (!last) return;
  draw_facts();
  draw_map(last.topology);
  show("edges", "Who calls whom, as a table", ["From", "To", "Calls", "mTLS", "Denied", "Errors", "Last"], edge_rows(last.topology), "no calls in the last " + SINCE / 60 + " minutes");
  draw_decisions(last.topology.now);
  draw_policies();
  draw_workloads();
  draw_latency();
}

// Nothing looks good that nobody has told of for a while.
function age() {
  const seconds = news === null ? 0 : Math.round((Date.now() - news) / 1000), is_old = seconds >= QUIET;
  byId("main").classList.toggle("old", is_old);
  byId("facts").classList.toggle("old", is_old);
  const told = byId("age");
  if (!is_old) return told?.remove();
  const text = "? no news for " + length(seconds) + ": all of this is old";
  if (told) told.textContent = text;
  else {
    const made = element("li", text, "odd");
    made.id = "age";
    byId("facts").prepend(made);
    say(text);
  }
}

async function ask(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" }, signal: AbortSignal.timeout(EVERY) });
  if (!answer.ok) throw new Error(path + " " + answer.status);
  return answer.json();
}
async function renew() {
  if (!paused && !document.hidden) {
    try {
      const [status, topology, policies, authorities] = await Promise.all([ask("status"), ask("topology?since=" + SINCE), ask("policies"), ask("authorities")]);
      news = Date.now();
      domain = topology.trust_domain;
      says = new Map(policies.policies.filter((one) => one.matched !== null).map((one) => [one.namespace + "/" + one.name, one.says]));
      if (!paused) last = { status, topology, policies, authorities };
      draw();
    } catch {
      if (!last) byId("facts").replaceChildren(element("li", "? the control plane does not answer", "soft"));
      news ??= Date.now();
    }
  }
  setTimeout(renew, EVERY);
}

byId("find").addEventListener("input", draw);
byId("allowed").addEventListener("change", draw);
byId("middle").addEventListener("change", () => {
  const wanted = byId("middle").value.trim().toLowerCase(), ids = last ? last.topology.nodes.map((node) => node.id).filter(is_named) : [];
  const found = ids.find((id) => id.toLowerCase() === wanted) ?? ids.find((id) => named(id).name.toLowerCase() === wanted) ?? ids.find((id) => id.toLowerCase().includes(wanted));
  if (wanted && found === undefined) return say("no service has that in its name");
  middle = wanted ? found : null;
  if (middle) say(called(middle) + " is in the middle");
  draw();
});
byId("all").addEventListener("click", () => { middle = null; byId("middle").value = ""; byId("middle").focus(); draw(); });
byId("skip").addEventListener("click", () => byId("h-decisions").focus());
byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  if (!paused) {
    held_back.forEach(take);
    held_back = [];
    waiting = 0;
  }
  draw();
});
setInterval(age, 1000);
renew().then(watch, watch);
