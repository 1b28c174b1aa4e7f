"use strict";
// Everything that comes from a job is put into the page as text, never as HTML.
const COLOURS = ["#0b6bcb", "#d1495b", "#2a9d5c", "#b8860b", "#7b4fc9", "#0e8f9b", "#c25e1b", "#6b7785", "#ad3f8e", "#5c7a14", "#3a4fb0", "#945a3a"];
const main = document.getElementById("main");
const embedded = document.getElementById("data") ? JSON.parse(document.getElementById("data").textContent) : null;
let stream = null;

function el(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "text", "circle", "rect", "title", "polyline"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) made.append(child);
  return made;
}
const text = (value) => value === null || value === undefined ? "–"
  : typeof value === "number" ? (Number.isInteger(value) ? String(value) : value.toPrecision(5).replace(/\.?0+$/, "")) : String(value);
const colour = (names, name) => COLOURS[names.indexOf(name) % COLOURS.length];

const SHOWN = 500; // rows of a table: browsers are slow with more
// A table whose columns sort. columns: [key, title, cell(row)?]
const sorted = {}; // caption -> [key, ascending]: an update keeps the order that a table was given
function table(columns, rows, caption) {
  const body = el("tbody");
  const numeric = (key) => rows.some((row) => typeof row[key] === "number");
  const kinds = Object.fromEntries(columns.map(([key]) => [key, numeric(key)]));
  const fill = (ordered) => body.replaceChildren(...ordered.slice(0, SHOWN).map((row) => el("tr", {}, columns.map(([key, , cell]) =>
    el("td", { class: kinds[key] ? "number" : null }, cell ? cell(row) : text(row[key]))))));
  const order = () => {
    const [key, up] = sorted[caption] || [];
    heads.forEach((head, i) => head.setAttribute("aria-sort", columns[i][0] !== key ? "none" : up ? "ascending" : "descending"));
    const rank = (row) => row[key] === null || row[key] === undefined ? null : row[key];
    fill(key === undefined ? rows : [...rows].sort((a, b) => {
      const [x, y] = [rank(a), rank(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
    }));
  };
  const heads = columns.map(([key, title]) => el("th", { scope: "col", class: numeric(key) ? "number" : null },
    el("button", { type: "button", onclick: () => {
      const [last, up] = sorted[caption] || [];
      sorted[caption] = [key, !(last === key && up)];
      order();
    } }, title)));
  order();
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {}, el("caption", { class: "visually-hidden" }, caption), el("thead", {}, el("tr", {}, heads)), body),
    rows.length > SHOWN ? el("p", { class: "soft" }, `${SHOWN} of ${rows.length} are shown; sorting chooses among all`) : null);
}

function scale(low, high, from, to, log) {
  const f = log ? Math.log : (v) => v, a = f(low), b = f(high) === a ? a + 1 : f(high);
  return (value) => from + (f(value) - a) / (b - a) * (to - from);
}
// Where an axis has its marks, with short labels; `note`: what they leave out, for the axis' title.
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= raw), fine = Math.floor(Math.log10(step) + 1e-9);
  const large = Math.floor(Math.log10(Math.max(Math.abs(low), Math.abs(high), step)) + 1e-9), places = Math.max(0, -fine);
  const plain = Math.max(large, 0) + 1 + places <= 5;
  const base = plain || large - fine < 4 ? 0 : Math.floor(low / (100 * step)) * 100 * step; // far from zero: counted from here
  const unit = plain ? 1 : 10 ** (base ? fine : large), digits = plain ? places : base ? 0 : Math.min(4, large - fine);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-6); k * step <= high + 1e-6 * step; k++) found.push({ value: k * step, label: ((k * step - base) / unit).toFixed(digits) });
  const times = plain ? "" : `× ${unit.toExponential(0).replace("e+", "e")}`;
  return { marks: found, note: plain ? "" : base ? ` (${Number(base.toPrecision(12))} + … ${times})` : ` (${times})` };
}
const room = () => Math.max(280, Math.min(860, main.clientWidth - parseFloat(getComputedStyle(main).paddingLeft) * 2 || 860));
function frame(label, xs, ys, titles) {
  const width = room(), height = Math.round(Math.max(260, width * .44)), box = { left: 70, right: 20, top: 14, bottom: 44 };
  const x = scale(xs[0], xs[1], box.left, width - box.right), y = scale(ys[0], ys[1], height - box.bottom, box.top);
  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label });
  const across = ticks(...xs, Math.max(2, Math.min(7, Math.floor(width / 110)))), up = ticks(...ys, 6);
  for (const { value, label: words } of across.marks) svg.append(el("line", { class: "grid", x1: x(value), x2: x(value), y1: box.top, y2: height - box.bottom }),
    el("text", { class: "tick", x: x(value), y: height - box.bottom + 16, "text-anchor": "middle" }, words));
  for (const { value, label: words } of up.marks) svg.append(el("line", { class: "grid", x1: box.left, x2: width - box.right, y1: y(value), y2: y(value) }),
    el("text", { class: "tick", x: box.left - 6, y: y(value) + 4, "text-anchor": "end" }, words));
  svg.append(el("line", { class: "axis", x1: box.left, x2: width - box.right, y1: height - box.bottom, y2: height - box.bottom }),
    el("line", { class: "axis", x1: box.left, x2: box.left, y1: box.top, y2: height - box.bottom }),
    el("text", { class: "axis-title", x: (width + box.left) / 2, y: height - 8, "text-anchor": "middle" }, titles[0] + across.note),
    el("text", { class: "axis-title", x: 14, y: (height - box.bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 14 ${(height - box.bottom) / 2})` }, titles[1] + up.note));
  return { svg, x, y };
}
const quantile = (values, q) => [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(q * values.length))];

const hidden = new Set();
function convergence(job, redraw) {
  const names = job.curves.map((curve) => curve.algorithm), shown = job.curves.filter((curve) => !hidden.has(curve.algorithm));
  const legend = el("ul", { class: "legend" }, job.curves.map((curve) => el("li", {}, el("button", { type: "button",
    "aria-pressed": String(!hidden.has(curve.algorithm)), onclick: () => {
      hidden.has(curve.algorithm) ? hidden.delete(curve.algorithm) : hidden.add(curve.algorithm); redraw(); } },
    el("span", { class: "swatch", style: `background:${colour(names, curve.algorithm)}` }), `${curve.algorithm} (${curve.runs})`))));
  if (!shown.length) return [legend];
  const lows = shown.flatMap((c) => c.low), tops = shown.map((c) => quantile(c.high, .1));
  const low = Math.min(...lows), top = Math.max(...tops), pad = (top - low) * .05 || Math.abs(low) * .05 || 1;
  const end = Math.max(...shown.map((c) => c.evaluations.at(-1)));
  const { svg, x, y } = frame("Best fitness so far by evaluations, for each algorithm", [1, Math.max(2, end)], [low - pad, top + pad],
    ["evaluations", `best ${job.summary.fitness} so far`]);
  const clip = (v) => Math.min(v, top + pad);
  for (const curve of shown) {
    const at = curve.evaluations, ink = colour(names, curve.algorithm);
    const line = (values) => at.map((e, i) => `${x(e).toFixed(1)},${y(clip(values[i])).toFixed(1)}`);
    if (curve.runs > 1) svg.append(el("path", { d: `M${line(curve.low).join("L")}L${line(curve.high).reverse().join("L")}Z`, fill: ink, opacity: .15 }));
    svg.append(el("polyline", { points: line(curve.median).join(" "), fill: "none", stroke: ink, "stroke-width": 2 }));
  }
  return [legend, svg];
}

const pairs = (space, metric) => (space.pairs && space.pairs[metric]) || []; // [layer, layer, table] each
const cost = (space, metric, candidate) => space.base[metric] + candidate.reduce((sum, level, layer) => sum + space.costs[metric][layer][level], 0)
  + pairs(space, metric).reduce((sum, [a, b, table]) => sum + table[candidate[a]][candidate[b]], 0);
const share = (space, metric, candidate, layer) => pairs(space, metric).reduce((sum, [a, b, table]) => // of what a pair costs, each has half
  sum + (a === layer || b === layer ? table[candidate[a]][candidate[b]] / 2 : 0), space.costs[metric][layer][candidate[layer]]);
const error = (space, candidate) => candidate.reduce((sum, level, layer) => sum + space.errors[layer][level], 0);
const same = (a, b) => a.length === b.length && a.every((level, layer) => level === b[layer]);

function front(job, show) {
  const space = job.space, metric = Object.keys(space.budgets)[0] || Object.keys(space.costs)[0];
  const points = job.trials.map((trial) => ({ ...trial, levels: trial.candidate.split(",").map(Number) }));
  for (const point of points) point.cost = cost(space, metric, point.levels);
  if (!points.length) return [];
  const costs = points.map((p) => p.cost), values = points.map((p) => p.fitness);
  const top = Math.max(quantile(values, .9), ...points.filter((p) => same(p.levels, space.uniform)).map((p) => p.fitness));
  const low = Math.min(...values), span = (top - low) * .05 || Math.abs(low) * .05 || 1, left = Math.min(...costs), right = Math.max(...costs);
  const { svg, x, y } = frame("Cost and fitness of the scored profiles", [left - (right - left || left) * .03, right + (right - left || left) * .03],
    [low - span, top + span], [`${metric}, share of the dense model`, job.summary.fitness]);
  const algorithms = [...new Set(job.runs.map((run) => run.algorithm))], of = Object.fromEntries(job.runs.map((run) => [run.run, run.algorithm]));
  for (const point of [...points].reverse()) {
    const dot = el("circle", { cx: x(point.cost), cy: y(Math.min(point.fitness, top + span)), r: 3, fill: colour(algorithms, of[point.run]), opacity: .6,
      style: "cursor:pointer", onclick: () => show(point.levels, `trial ${point.number} of ${point.run}`) });
    dot.append(el("title", {}, `${point.run}, trial ${point.number}: ${text(point.fitness)}`));
    svg.append(dot);
  }
  let best = Infinity;
  const edge = [...points].sort((a, b) => a.cost - b.cost).filter((p) => p.fitness < best && ((best = p.fitness), true));
  svg.append(el("polyline", { points: edge.map((p) => `${x(p.cost)},${y(Math.min(p.fitness, top + span))}`).join(" "), fill: "none", stroke: "currentColor" }));
  const marks = [["uniform", space.uniform], ["additive optimum", space.optimum], ["best", points[0].levels]];
  for (const [i, [, levels]] of marks.entries()) {
    const point = points.find((p) => same(p.levels, levels));
    if (!point || marks.slice(0, i).some(([, earlier]) => same(earlier, levels))) continue;
    const names = marks.filter(([, other]) => same(other, levels)).map(([n]) => n), at = x(point.cost), before = at > room() / 2;
    svg.append(el("circle", { cx: at, cy: y(point.fitness), r: 7, fill: "none", stroke: "currentColor", "stroke-width": 2 }),
      ...names.map((name, line) => el("text", { x: at + (before ? -11 : 11), y: y(point.fitness) + 4 + 14 * line, "text-anchor": before ? "end" : "start" }, name)));
  }
  return [svg];
}

function removed(level) { // how far a level goes, 0 to 1, for the shade alone
  const share = /-(0?\.\d+)/.exec(level), pattern = /(\d+):(\d+)/.exec(level), bits = /(?:^|[+:])w(\d+)/.exec(level);
  return 1 - (share ? 1 - Number(share[1]) : 1) * (pattern ? pattern[1] / pattern[2] : 1) * (bits ? Math.min(1, bits[1] / 16) : 1);
}
function heat(job, show) {
  const space = job.space, css = getComputedStyle(document.documentElement);
  const [low, high] = ["--heat-low", "--heat-high"].map((name) => css.getPropertyValue(name).split(",").map(Number));
  const shade = (share) => `rgb(${low.map((v, i) => Math.round(v + (high[i] - v) * share)).join(",")})`;
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Chosen levels" }, el("table", { class: "heat" },
    el("caption", { class: "visually-hidden" }, "Level of every layer in the pick of every run; darker is more compressed"),
    el("thead", {}, el("tr", {}, el("th", {}, ""), space.layers.map((layer) => el("th", { scope: "col" }, layer)))),
    el("tbody", {}, [["uniform", space.uniform], ["additive optimum", space.optimum], ...job.picks.map((pick) => [`${pick.algorithm}, seed ${pick.seed}`, pick.candidate])]
      .map(([name, candidate]) => el("tr", {}, el("th", { scope: "row" }, el("button", { type: "button", class: "link", onclick: () => show(candidate, name) }, name)),
        candidate.map((level, layer) => el("td", {}, el("span", { style: `background:${shade(removed(space.levels[layer][level]))}`,
          title: `${space.layers[layer]}: ${space.levels[layer][level]}` }, el("span", { class: "visually-hidden" }, space.levels[layer][level])))))))));
}

function profile(job, candidate, name) {
  const space = job.space;
  const rows = candidate.map((level, layer) => ({ layer: space.layers[layer], level: space.levels[layer][level], uniform: space.levels[layer][space.uniform[layer]],
    differs: level !== space.uniform[layer], ...Object.fromEntries(Object.keys(space.costs).map((metric) => [metric, share(space, metric, candidate, layer)])) }));
  const content = Object.fromEntries(rows.map((row) => [row.layer, row.level]));
  const href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  return [el("h2", { id: "profile-title", tabindex: "-1" }, `Profile: ${name}`),
    el("ul", { class: "cards" }, Object.keys(space.costs).map((metric) => el("li", {}, el("b", {}, text(cost(space, metric, candidate))),
      metric + (space.budgets[metric] ? ` (budget ${text(space.budgets[metric])})` : ""))), el("li", {}, el("b", {}, text(error(space, candidate))), "additive error")),
    el("p", {}, el("a", { href, download: "profile.json" }, "Download this profile")),
    table([["layer", "layer"], ["level", "level", (row) => el("span", { class: row.differs ? "differs" : null }, row.level)], ["uniform", "uniform"],
      ...Object.keys(space.costs).map((metric) => [metric, metric])], rows, "Layers of the profile and their shares of the dense model")];
}

function jobView(job) {
  const panel = el("section", { "aria-live": "polite" });
  const show = (candidate, name) => { panel.replaceChildren(...profile(job, candidate, name)); panel.querySelector("h2").focus(); };
  const summary = job.summary, curves = el("div");
  const redraw = () => curves.replaceChildren(...convergence(job, redraw));
  redraw();
  const parts = [
    el("h2", {}, `Job ${summary.job}`),
    el("ul", { class: "cards" }, [["state", summary.state], ["fitness", summary.fitness], ["best", summary.best], ["evaluations", `${text(summary.asked)} of ${text(summary.evaluations)}`],
      ...Object.entries(summary.budgets).map(([metric, bound]) => [`budget ${metric}`, bound])].map(([name, value]) => el("li", {}, el("b", {}, text(value)), name))),
    el("p", { class: "soft" }, `The fitness ${summary.fitness} is ${summary.meaning}; lower is better.`
      + (job.space && job.space.task ? ` The task is ${job.space.task}; exported models are measured by its metric (${job.space.metric}).` : "")),
    el("h2", {}, "Convergence"), el("p", { class: "soft" }, "Median of the runs of each algorithm, lower is better; the band reaches from the lowest to the highest."), curves,
    el("h2", {}, "League"), el("p", { class: "soft" }, "Best, median and quartiles over seeds, and area are fitnesses: lower is better."),
    table([["algorithm", "algorithm"], ["best", "best"], ["median", "median"], ["q1", "q1"], ["q3", "q3"], ["area", "area"], ["to_best", "to best"], ["wins", "wins"], ["seeds", "seeds"],
      ["evaluations", "evaluations"], ["scored", "scored"], ["seconds", "seconds"], ["thinking", "thinking"]], job.league, "Standings of the algorithms"),
    el("h2", {}, "Runs"),
    table([["run", "run"], ["state", "state"], ["trials", "trials"], ["scored", "scored"], ["best", "best"], ["seconds", "seconds"]], job.runs, "Runs"),
  ];
  if (job.space) parts.push(
    el("h2", {}, "Cost and fitness"), el("p", { class: "soft" }, "Every dot is a profile; click one to see it. The line joins those that nothing cheaper beats."), ...front(job, show),
    el("h2", {}, "Chosen levels"), heat(job, show),
    el("h2", {}, "Best trials"),
    table([["run", "run"], ["number", "trial"], ["fitness", "fitness"], ["candidate", "profile", (row) => el("button", { type: "button", class: "link",
      onclick: () => show(row.candidate.split(",").map(Number), `trial ${row.number} of ${row.run}`) }, "show")]], job.trials.slice(0, 25), "Best trials"));
  if (job.files && job.files.length) parts.push(el("h2", {}, "Files"), el("ul", {}, job.files.map((name) =>
    el("li", {}, el("a", { href: `api/jobs/${encodeURIComponent(summary.job)}/files/${name.split("/").map(encodeURIComponent).join("/")}`, download: true }, name)))));
  return [...parts, panel];
}

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return [await answer.json(), answer.headers.get("ETag")];
}
const get = async (path) => (await ask(path))[0];
function crumbs(...parts) {
  document.getElementById("crumbs").replaceChildren(...parts.flatMap((part, i) => i ? [" › ", part] : [part]));
}
const live = (words) => { document.getElementById("live").textContent = words; };

async function listView() {
  crumbs("jobs");
  const chosen = new Set();
  const compare = el("button", { type: "button", onclick: () => { location.hash = "#/compare/" + [...chosen].map(encodeURIComponent).join("/"); } }, "Compare chosen");
  const draw = (jobs) => {
    const rows = jobs.map((job) => ({ ...job, done: job.evaluations ? job.asked / job.evaluations : 0, names: job.algorithms.join(", "),
      bounds: Object.entries(job.budgets).map(([k, v]) => `${k} ${v}`).join(", ") }));
    main.replaceChildren(el("h2", {}, "Jobs"), rows.length ? table([
      ["chosen", "", (row) => { if (row.waiting) return ""; const box = el("input", { type: "checkbox", "aria-label": `choose ${row.job}`, checked: chosen.has(row.job),
        onchange: () => box.checked ? chosen.add(row.job) : chosen.delete(row.job) }); return box; }],
      ["job", "job", (row) => row.waiting ? row.job : el("a", { href: `#/job/${encodeURIComponent(row.job)}` }, row.name || row.job)], ["state", "state"], ["bounds", "budgets"], ["fitness", "fitness"],
      ["names", "algorithms"], ["done", "done", (row) => `${Math.floor(100 * row.done)} %`], ["best", "best"]], rows, "Jobs") : el("p", {}, "No jobs yet."), compare);
  };
  const [loaded, version] = await ask("api/jobs"), known = new Map(loaded.map((row) => [row.job, row]));
  let order = [...known.keys()];
  draw(loaded);
  follow(`api/events?seen=${version}`, (news) => {
    for (const row of news.rows) known.set(row.job, row);
    order = news.order || order;
    draw(order.map((job) => known.get(job)));
  });
}
async function showJob(id) {
  crumbs(el("a", { href: "#/" }, "jobs"), id);
  const draw = (job) => {
    const open = main.querySelector("#profile-title"), panel = open ? open.parentNode : null, at = window.scrollY;
    const view = jobView(job);
    if (panel) view[view.length - 1] = panel;
    main.replaceChildren(...view);
    window.scrollTo(0, at);
  };
  const job = await get(`api/jobs/${encodeURIComponent(id)}`);
  draw(job);
  follow(`api/jobs/${encodeURIComponent(id)}/events?seen=${job.version}`, draw);
}
async function showComparison(ids) {
  crumbs(el("a", { href: "#/" }, "jobs"), "comparison");
  const jobs = await Promise.all(ids.map((id) => get(`api/jobs/${encodeURIComponent(id)}`)));
  const rows = jobs.flatMap((job) => job.league.map((row) => ({ ...row, job: job.summary.job, bounds: Object.entries(job.summary.budgets).map(([k, v]) => `${k} ${v}`).join(", "),
    measure: job.summary.fitness })));
  main.replaceChildren(el("h2", {}, "Jobs side by side"), table([["job", "job"], ["bounds", "budgets"], ["measure", "fitness"], ["algorithm", "algorithm"], ["best", "best"],
    ["median", "median"], ["area", "area"], ["seeds", "seeds"], ["evaluations", "evaluations"]], rows, "Leagues of the chosen jobs"),
    ...jobs.flatMap((job) => [el("h2", {}, `Job ${job.summary.job}`), ...convergence(job, route)]));
}
function follow(path, draw) {
  stream = new EventSource(path);
  stream.onmessage = (event) => { draw(JSON.parse(event.data)); live(`updated ${new Date().toLocaleTimeString()}`); };
  stream.addEventListener("trouble", (event) => live(JSON.parse(event.data) || "live"));
  stream.onerror = () => live("not connected; trying again");
  stream.onopen = () => live("live");
}
function route() {
  if (stream) { stream.close(); stream = null; }
  const [, kind, ...ids] = location.hash.split("/").map(decodeURIComponent);
  const shown = kind === "job" ? showJob(ids[0]) : kind === "compare" ? showComparison(ids) : listView();
  shown.catch((problem) => main.replaceChildren(el("p", { role: "alert" }, String(problem.message))));
}
function start() {
  if (embedded) { crumbs(`report of ${embedded.written}`); main.replaceChildren(...jobView(embedded)); } else route();
}
let drawn = room(), later = 0;
window.addEventListener("resize", () => { // figures are drawn for the room that they have
  clearTimeout(later);
  later = setTimeout(() => { if (room() !== drawn) { drawn = room(); start(); } }, 200);
});
if (!embedded) window.addEventListener("hashchange", route);
start();
