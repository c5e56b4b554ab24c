"""Style and script of the dashboard, as they are sent."""

CSS = """
:root { color-scheme: light dark; --good: #2e9e5b; --warn: #d99a1c; --bad: #d03b3b; --line: #8884; --soft: #8882; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 1rem; }
header { display: flex; flex-wrap: wrap; gap: 0 1rem; align-items: baseline; border-bottom: 1px solid var(--line); }
h1 { margin: 0; font-size: 1.5rem; } h1 small { font-weight: normal; opacity: .7; }
h2 { font-size: 1.05rem; margin: 1.4rem 0 .3rem; } p { margin: .3rem 0; }
#health { font-weight: bold; padding: 0 .7rem; border-radius: 1rem; color: #fff; }
#health.ok { background: var(--good); } #health.degraded { background: var(--warn); } #health.down { background: var(--bad); }
details { border-left: 4px solid var(--good); padding: .1rem .6rem; margin: .3rem 0; background: var(--soft); }
details.degraded { border-color: var(--warn); } details.down { border-color: var(--bad); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
section { overflow-x: auto; }
th, td { text-align: left; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: normal; opacity: .7; }
svg.grid { width: 100%; } svg.chart { width: 100%; height: 6rem; background: var(--soft); }
svg.bar { width: 7rem; height: .7rem; vertical-align: middle; }
rect.in_sync { fill: var(--good); } rect.degraded { fill: var(--warn); } rect.down { fill: var(--bad); }
rect.rest { fill: var(--line); }
polyline { fill: none; stroke-width: 1.5; vector-effect: non-scaling-stroke; }
polyline.read { stroke: #3b7dd8; } polyline.written { stroke: #c5568f; } polyline.resynced { stroke: #8a7a2f; }
span.read::before, span.written::before, span.resynced::before { content: "\\25a0 "; }
span.read::before { color: #3b7dd8; } span.written::before { color: #c5568f; } span.resynced::before { color: #8a7a2f; }
span.state { font-weight: bold; color: var(--good); } span.state.down { color: var(--bad); }
span.state.away, span.state.drain, span.state.full { color: var(--warn); }
footer { margin: 2rem 0 1rem; opacity: .7; }
main.old { opacity: .45; }
"""

JAVASCRIPT = """"use strict";
// Fetches the page anew and puts its contents in place; what was opened stays open. Grey: the server does not answer.
const EVERY_MS = 2000;
async function refresh() {
  const shown = document.getElementById("look");
  try {
    const answer = await fetch("/", { signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(answer.statusText);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const look = document.adoptNode(fresh.getElementById("look"));
    for (const open of shown.querySelectorAll("details[open]")) {
      const same = [...look.querySelectorAll("details")].find(
        (item) => item.querySelector("b").textContent === open.querySelector("b").textContent);
      if (same) same.open = true;
    }
    shown.replaceWith(look);
    document.title = fresh.title;
  } catch (error) {
    shown.classList.add("old");
  }
  setTimeout(refresh, EVERY_MS);
}
setTimeout(refresh, EVERY_MS);
"""
