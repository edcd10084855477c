// The map: who calls whom, from left to right; of a large mesh one service with its callers and whom it calls.
const MOST = 30, WIDE = 168, HIGH = 50, APART = 150, ROW = 74, EDGE = 24, SIDE = 14;
let middle = null, map_held = null;

const is_named = (id) => id !== NOBODY && id !== OUTSIDE;
const is_fresh = (edge, now) => seconds(edge.last, now) <= QUIET;
const is_locked = (edge, nodes) => edge.served > 0 && edge.mutual_tls === edge.served && nodes.get(edge.to)?.strict === true;
// What is to be seen of an edge: never good by default.
function look(edge, nodes, now) {
  if (!is_fresh(edge, now)) return "quiet";
  if (edge.denied > 0 && edge.denied === edge.calls) return "bad";
  return is_locked(edge, nodes) ? "good" : "odd";
}
function share(edge) {
  if (edge.served === 0) return edge.denied ? "" : "none served";
  return edge.mutual_tls === 0 ? "no mTLS" : percent(edge.mutual_tls, edge.served) + " mTLS";
}

// The column of each: one to the right of the last of its callers; calls in a circle go back.
function columns(ids, edges) {
  const out = new Map(ids.map((id) => [id, []])), column = new Map(), order = [], seen = new Set(), open = new Set(), back = new Set();
  for (const edge of edges) out.get(edge.from).push(edge);
  const has_callers = new Set(edges.filter((edge) => edge.from !== edge.to).map((edge) => edge.to));
  const visit = (id) => {
    seen.add(id);
    open.add(id);
    for (const edge of out.get(id)) {
      if (open.has(edge.to)) back.add(edge);
      else if (!seen.has(edge.to)) visit(edge.to);
    }
    open.delete(id);
    order.unshift(id);
  };
  for (const id of [...ids.filter((id) => !has_callers.has(id)), ...ids]) if (!seen.has(id)) visit(id);
  for (const id of order) {
    column.set(id, column.get(id) ?? 0);
    for (const edge of out.get(id)) if (!back.has(edge)) column.set(edge.to, Math.max(column.get(edge.to) ?? 0, column.get(id) + 1));
  }
  return column;
}

function placed(ids, edges, column) {
  const busy = new Set(edges.flatMap((edge) => [edge.from, edge.to])), rows = [];
  for (const id of ids) if (busy.has(id)) (rows[column.get(id)] ??= []).push(id);
  const at = new Map();
  const settle = (all) => all.forEach((id, row) => at.set(id, row - (all.length - 1) / 2));
  rows.forEach(settle);
  // Each beside the middle of those that it talks to, so that lines cross seldom.
  for (let turn = 0; turn < 6; turn++) {
    for (const all of rows) {
      const pull = new Map(all.map((id) => {
        const others = edges.flatMap((edge) => edge.from === id ? [at.get(edge.to)] : edge.to === id ? [at.get(edge.from)] : []);
        return [id, others.reduce((sum, one) => sum + one, 0) / Math.max(1, others.length)];
      }));
      all.sort((a, b) => pull.get(a) - pull.get(b) || (a < b ? -1 : 1));
      settle(all);
    }
  }
  const most = Math.max(1, ...rows.map((all) => all.length)), places = new Map();
  rows.forEach((all, x) => all.forEach((id, y) => places.set(id, { x: EDGE + x * (WIDE + APART), y: EDGE + (y + (most - all.length) / 2) * ROW })));
  // Whoever talks to nobody stands below.
  const idle = ids.filter((id) => !busy.has(id)), across = Math.max(3, rows.length);
  const below = rows.length ? EDGE + most * ROW + 10 : EDGE;
  idle.forEach((id, n) => places.set(id, { x: EDGE + (n % across) * (WIDE + (rows.length ? APART : 30)), y: below + Math.floor(n / across) * ROW }));
  return places;
}

// One in the middle, callers left, called right, the busiest of them.
function around(id, edges) {
  const side = (own, other) => {
    const all = edges.filter((edge) => edge[own] === id && edge[other] !== id).sort((a, b) => b.calls - a.calls);
    return { shown: all.slice(0, SIDE), more: all.length - Math.min(all.length, SIDE) };
  };
  const callers = side("to", "from"), called_ones = side("from", "to");
  const places = new Map(), most = Math.max(1, callers.shown.length, called_ones.shown.length);
  const put = (ids, x) => ids.forEach((one, y) => { if (!places.has(one)) places.set(one, { x: EDGE + x * (WIDE + APART), y: EDGE + (y + (most - ids.length) / 2) * ROW }); });
  put([id], 1);
  put(callers.shown.map((edge) => edge.from), 0);
  put(called_ones.shown.map((edge) => edge.to), 2);
  const loops = edges.filter((edge) => edge.from === id && edge.to === id);
  return { places, edges: [...callers.shown, ...called_ones.shown, ...loops], more: callers.more + called_ones.more };
}

function draw_map(page) {
  const nodes = new Map(page.nodes.map((node) => [node.id, node])), now = page.now;
  const ids = [...nodes.keys()];
  if (middle !== null && !nodes.has(middle)) middle = null;
  const busiest = () => {
    const calls = new Map();
    for (const edge of page.edges) for (const end of [edge.from, edge.to]) calls.set(end, (calls.get(end) ?? 0) + edge.calls);
    return ids.filter(is_named).sort((a, b) => (calls.get(b) ?? 0) - (calls.get(a) ?? 0) || (a < b ? -1 : 1))[0];
  };
  const center = middle ?? (ids.length > MOST ? busiest() : null);
  let places, edges = page.edges, more = 0;
  if (center === null) places = placed(ids, edges, columns(ids, edges));
  else ({ places, edges, more } = around(center, edges));
  const svg = byId("map"), xs = [...places.values()];
  const width = Math.max(560, ...xs.map((one) => one.x + WIDE + EDGE)), height = Math.max(120, ...xs.map((one) => one.y + HIGH + EDGE));
  svg.setAttribute("viewBox", "0 0 " + width + " " + height);
  svg.setAttribute("width", width);
  svg.setAttribute("height", height);
  const lines = drawn("g", {}), told = drawn("g", {}), boxes = drawn("g", {});
  // The busiest get the best places for what is said of them.
  const taken = xs.map((one) => ({ x: one.x, y: one.y, w: WIDE, h: HIGH }));
  [...edges].sort((a, b) => b.calls - a.calls).forEach((edge) => line(edge, nodes, places, now, lines, told, taken));
  for (const [id, place] of [...places].sort((a, b) => a[1].x - b[1].x || a[1].y - b[1].y)) boxes.append(box(id, nodes.get(id), place, page.edges, center));
  const is_held = svg.contains(document.activeElement) ? document.activeElement.dataset.key : map_held;
  svg.replaceChildren(lines, boxes, told);
  map_held = null;
  if (is_held !== undefined && is_held !== null) svg.querySelector('[data-key="' + CSS.escape(is_held) + '"]')?.focus({ preventScroll: true });
  byId("all").hidden = middle === null || ids.length > MOST;
  const about = [];
  if (center !== null) about.push(called(center) + " in the middle" + (ids.length > MOST ? " of " + ids.length + " services: put another one there by name, or choose one in the map" : ""));
  if (more) about.push(counted(more, "neighbour is", "neighbours are") + " in the table only");
  if (page.left_out) about.push(page.left_out + " pairs with the fewest calls are left out");
  about.push("Last 10 minutes. A lock: all calls with mutual TLS, and the called takes nothing else. ✗: denied. Grey and dotted: no call for " + QUIET + " s.");
  byId("map-note").textContent = about.join(". ").replace("..", ".");
  const names = byId("services");
  if (names.childElementCount !== ids.length) names.replaceChildren(...ids.filter(is_named).map((id) => { const one = element("option"); one.value = id; return one; }));
}

// A point of the curve, at its part t.
function point(curve, t) {
  const [a, b, c, d] = curve, u = 1 - t;
  const of = (key) => u * u * u * a[key] + 3 * u * u * t * b[key] + 3 * u * t * t * c[key] + t * t * t * d[key];
  return { x: of("x"), y: of("y") };
}
// Where nothing stands yet, as near to the middle of the curve as can be.
function room(curve, lines, taken) {
  const area = (at) => ({ x: at.x - 56, y: at.y - lines * 8, w: 112, h: lines * 16 });
  const meet = (a, b) => a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h;
  const tries = [0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74, 0.2, 0.8].map((t) => point(curve, t));
  const at = tries.find((one) => !taken.some((other) => meet(area(one), other))) ?? tries[0];
  taken.push(area(at));
  return at;
}

function line(edge, nodes, places, now, lines, told, taken) {
  const from = places.get(edge.from), to = places.get(edge.to);
  if (!from || !to) return;
  const kind = look(edge, nodes, now), forth = to.x > from.x;
  let curve;
  if (forth) {
    const a = { x: from.x + WIDE, y: from.y + HIGH / 2 }, d = { x: to.x - 9, y: to.y + HIGH / 2 }, bend = Math.max(40, (d.x - a.x) / 2);
    curve = [a, { x: a.x + bend, y: a.y }, { x: d.x - bend, y: d.y }, d];
  } else {
    // Back, or within a column: around below.
    const low = Math.max(from.y, to.y) + HIGH + 26, a = { x: from.x + WIDE / 2, y: from.y + HIGH }, d = { x: to.x + WIDE / 2 + (from === to ? 40 : 0), y: to.y + HIGH + 9 };
    curve = [a, { x: a.x, y: low }, { x: d.x, y: low }, d];
  }
  const [a, b, c, d] = curve.map((one) => one.x + " " + one.y), end = curve[3];
  const thick = Math.min(5, 1.5 + Math.log10(edge.calls + 1) / 2);
  lines.append(drawn("path", { d: "M" + a + " C" + b + " " + c + " " + d, class: "call " + kind, "stroke-width": thick.toFixed(1) }));
  lines.append(drawn("path", { d: forth ? "M" + (end.x + 9) + " " + end.y + "l-11 -5.5v11z" : "M" + end.x + " " + (end.y - 9) + "l-5.5 11h11z", class: "tip " + kind }));
  const words = kind === "bad" ? [] : [share(edge)];
  if (edge.denied) words.push("✗ " + edge.denied + " denied");
  if (kind === "quiet") words.push(length(seconds(edge.last, now)) + " ago");
  const said = words.filter(Boolean), at = room(curve, said.length, taken);
  said.forEach((word, n) => {
    const y = at.y + 4 + (n - (said.length - 1) / 2) * 15, is_shut = word.endsWith("mTLS") && is_locked(edge, nodes);
    const wide = word.length * 7.2 + (is_shut ? 22 : 4);
    told.append(drawn("rect", { x: at.x - wide / 2, y: y - 11, width: wide, height: 15, class: "under-told" }));
    told.append(drawn("text", { x: at.x + (is_shut ? 8 : 0), y, class: "told " + (word.startsWith("✗") && kind !== "quiet" ? "bad" : kind) }, word));
    if (!is_shut) return;
    const sign = lock();
    for (const [key, value] of Object.entries({ x: at.x - 45, y: y - 10, width: 10, height: 12, class: "told " + kind })) sign.setAttribute(key, value);
    told.append(sign);
  });
}

function box(id, node, place, edges, center) {
  const { name, under } = named(id), cut = (text, most) => text.length > most ? text.slice(0, most - 1) + "…" : text;
  const in_mesh = node.kind === "workload";
  const made = drawn("g", { class: "box" + (in_mesh ? "" : " outside") + (id === center ? " middle" : ""), tabindex: 0, role: "button", transform: "translate(" + place.x + " " + place.y + ")" });
  made.dataset.key = id;
  const state = !in_mesh ? "" : node.connected === node.pods ? "✓ " + counted(node.pods, "sidecar", "sidecars") : "✗ " + node.connected + "/" + node.pods + " sidecars";
  const sum = (own) => counted(edges.filter((edge) => edge[own] === id).length, own === "to" ? "caller" : "called", own === "to" ? "callers" : "called");
  const facts = [called(id), state, node.services.length ? "services: " + node.services.join(", ") : "", in_mesh ? (node.strict ? "takes mutual TLS only" : "takes plaintext, too") : "no sidecar", sum("to"), sum("from")];
  made.setAttribute("aria-label", facts.filter(Boolean).join("; "));
  made.append(drawn("title", {}, facts.filter(Boolean).join("\n")), drawn("rect", { width: WIDE, height: HIGH, rx: 8 }));
  made.append(drawn("text", { x: 12, y: 21, class: "name" }, cut(name, 21)));
  made.append(drawn("text", { x: 12, y: 38, class: "under" + (in_mesh && node.connected < node.pods ? " bad" : "") }, cut(state ? under + " · " + state : under, 28)));
  const choose = () => { middle = middle === id ? null : id; map_held = id; draw(); };
  made.addEventListener("click", choose);
  made.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(); }
    if (event.key === "Escape") { middle = null; map_held = id; draw(); }
  });
  return made;
}

function end_cell(id) {
  const { name, under } = named(id);
  return { ...cell(called(id), id === NOBODY ? "odd" : ""), lines: [[name, ""], [under, "soft"]] };
}
function edge_rows(page) {
  const nodes = new Map(page.nodes.map((node) => [node.id, node]));
  return [...page.edges].sort((a, b) => b.denied - a.denied || b.calls - a.calls).map((edge) => {
    const kind = look(edge, nodes, page.now), fresh = kind !== "quiet";
    const tls = edge.served === 0 ? number("–") : number(percent(edge.mutual_tls, edge.served) + " (" + edge.mutual_tls + "/" + edge.served + ")", fresh ? edge.mutual_tls === edge.served ? "good" : "odd" : "soft");
    tls.lock = is_locked(edge, nodes);
    return [end_cell(edge.from), end_cell(edge.to), number(edge.calls), tls, bad(edge.denied), bad(edge.errors), number(between(edge.last, page.now) + " ago", fresh ? "" : "soft")];
  });
}
