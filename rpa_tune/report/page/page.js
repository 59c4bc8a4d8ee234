"use strict";
// Draws what the document in #data says; decides nothing about it.

const LONGEST = 72, MOST_ROWS = 200;

async function unzip(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

// The inverse of `pack` in page.py.
function unpack(packed) {
  const columns = Object.entries(packed.columns).map(([name, column]) =>
    [name, column.at ? column.at.map((i) => column.of[i]) : column.of]);
  return Array.from({ length: packed.length }, (_, i) =>
    Object.fromEntries(columns.map(([name, values]) => [name, values[i]])));
}

function element(kind, content = "", options = {}) {
  const made = Object.assign(document.createElement(kind), options);
  made.append(...[content].flat());
  return made;
}

function vegaConfig() {
  const style = getComputedStyle(document.documentElement);
  const [ink, line, paper] = ["--ink", "--line", "--paper"].map((name) => style.getPropertyValue(name).trim());
  return {
    background: null,
    view: { stroke: line },
    title: { color: ink },
    style: { "guide-label": { fill: ink }, "guide-title": { fill: ink },
      halo: { fill: paper, stroke: paper } },
    axis: { domainColor: line, gridColor: line, tickColor: line },
    header: { labelColor: ink, titleColor: ink },
    text: { color: ink },
  };
}

async function drawChart(parent, chart, rows, spec = chart.spec) {
  parent.append(element("h3", chart.question), element("p", chart.note, { className: "note" }));
  if (!rows.length) {
    parent.append(element("p", chart.empty));
    return;
  }
  const place = parent.appendChild(element("div", "", { className: "chart", id: `chart-${chart.id}` }));
  await vegaEmbed(place, { ...spec, datasets: { rows } },
    { renderer: "svg", actions: false, config: vegaConfig() });
}

function compareCells(a, b) {
  if (a === b) return 0;
  if (a === null || a === undefined || a === "") return 1;
  if (b === null || b === undefined || b === "") return -1;
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
}

// Numbers below each other have the same number of digits after the point.
function shown(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  const digits = Math.abs(value) < 10 ? 3 : 1;
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

// Long names (of many studies that share one) are cut; the pointer shows the whole.
function brief(text) {
  return text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text;
}

function cell(value) {
  const text = shown(value);
  const options = { className: typeof value === "number" ? "number" : "" };
  return element("td", brief(text), text.length > LONGEST ? { ...options, title: text } : options);
}

// A table whose heads sort it; `choose` is told the row that was clicked.
function drawTable(parent, packed, choose) {
  const rows = unpack(packed);
  const names = Object.keys(packed.columns).filter((name) => !name.startsWith("_"));
  const filter = element("input", "", { type: "search", placeholder: "filter", ariaLabel: "filter" });
  const body = element("tbody");
  const more = element("button", "", { type: "button", onclick: () => { most = rows.length; fill(); } });
  let sorted = rows, last = "", most = MOST_ROWS;
  const fill = () => {
    const words = filter.value.toLowerCase();
    const found = sorted
      .filter((row) => names.some((name) => shown(row[name]).toLowerCase().includes(words)));
    more.hidden = found.length <= most;
    more.textContent = `${most} of ${found.length.toLocaleString("en-US")} rows: show all`;
    body.replaceChildren(...found.slice(0, most)
      .map((row) => {
        const line = element("tr", names.map((name) => cell(row[name])));
        if (choose) {
          line.className = "choice";
          line.onclick = () => choose(row);
        }
        return line;
      }));
  };
  const numeric = new Set(names.filter((name) => rows.some((row) => typeof row[name] === "number")));
  const heads = names.map((name) => {
    const onclick = () => {
      const sign = last === name ? -1 : 1;
      last = sign === 1 ? name : "";
      sorted = [...rows].sort((a, b) => sign * compareCells(a[name], b[name]));
      fill();
    };
    return element("th", name, { className: numeric.has(name) ? "number" : "", onclick });
  });
  filter.oninput = fill;
  fill();
  const table = element("table", [element("thead", element("tr", heads)), body]);
  if (rows.length > 12) parent.append(filter);
  parent.append(element("div", table, { className: "scroll" }), more);
}

// Of a chart that is drawn for each study alike, `numbers` has no spec of its own.
async function drawCharts(parent, page, ids, packed, numbers = {}) {
  for (const id of ids) {
    await drawChart(parent, page.charts[id], unpack(packed[id]), page.specs[numbers[id]]);
  }
}

async function drawRun(page) {
  const run = document.getElementById("run");
  run.replaceChildren(element("h2", "The run"));
  run.append(element("h3", page.table.question), element("p", page.table.note, { className: "note" }));
  drawTable(run, page.table.rows, (row) => drawStudy(page, row._study, true));
  await drawCharts(run, page, page.run_charts, page.run);
}

async function drawCompare(page) {
  const compare = document.getElementById("compare");
  compare.replaceChildren();
  for (const [number, pair] of page.compare.entries()) {
    compare.append(element("h2", pair.title), element("p", pair.summary, { className: "why" }));
    compare.append(element("h3", pair.question), element("p", pair.note, { className: "note" }));
    const charts = element("div", "", { id: `pair-${number}` });
    const draw = async (row) => {
      charts.replaceChildren(element("h3", row.study), element("p", row._why, { className: "why" }));
      const rows = unpack(pair.causes).filter((cause) => cause.pair === row._pair);
      await drawChart(charts, page.charts.compared, rows);
    };
    drawTable(compare, pair.rows, draw);
    compare.append(charts);
    const first = unpack(pair.rows).find((row) => row._why);
    if (first) await draw(first);
  }
}

async function drawStudy(page, index, scroll = false) {
  const study = page.studies[index];
  const place = document.getElementById("study");
  const choice = element("select", page.studies.map((each, i) =>
    element("option", brief(each.label), { value: i, selected: i === index })), { ariaLabel: "study" });
  choice.onchange = () => drawStudy(page, Number(choice.value));
  place.replaceChildren(element("h2", ["Study ", choice]));
  place.append(element("p", study.why, { className: "why", id: "why" }));
  for (const fact of study.facts) place.append(element("p", fact, { className: "note" }));
  page.shown = index;
  if (scroll) place.scrollIntoView();
  await drawCharts(place, page, page.study_charts, study.rows, study.specs);
}

async function drawAll(page) {
  document.getElementById("title").textContent = page.title;
  document.getElementById("about").textContent = page.about;
  await drawCompare(page);
  await drawRun(page);
  if (page.studies.length) await drawStudy(page, page.shown ?? page.first);
  document.body.dataset.drawn = "yes";
}

async function main() {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  root.dataset.theme = dark.matches ? "dark" : "light";
  const library = element("script", await unzip("library"));
  document.head.append(library);
  const page = JSON.parse(await unzip("data"));
  const wanted = new URLSearchParams(location.hash.slice(1)).get("study");
  const named = page.studies.findIndex((study) => study.label === wanted);
  if (named >= 0) page.shown = named;
  document.getElementById("theme").onclick = () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    drawAll(page);
  };
  dark.onchange = () => {
    root.dataset.theme = dark.matches ? "dark" : "light";
    drawAll(page);
  };
  await drawAll(page);
}

main().catch((error) => {
  document.body.dataset.drawn = "error";
  document.getElementById("about").textContent =
    `This page cannot be drawn here: ${error}. It needs a browser of 2023 or later.`;
  throw error;
});
