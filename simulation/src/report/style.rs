//! What every page looks like.

pub const CSS: &str = r#"
:root { color-scheme: light; --ink: #1a2230; --soft: #5a6575; --line: #d9dee6; --paper: #fff; --ground: #f5f7fa;
  --ours: #1668b8; --ours2: #62aee8; --plain: #8a94a3; --peer: #d9730d; --bad: #c0262d; --good: #20814d; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 24px 28px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 2px; }
p { margin: 0 0 12px; color: var(--soft); max-width: 92ch; }
.how { font-size: 13px; } code { background: #e8ecf2; padding: 1px 5px; border-radius: 4px; margin-right: 10px; color: var(--ink); }
.headlines { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0; }
.headlines div { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 12px 18px; flex: 1 1 200px; }
.headlines b { display: block; font-size: 25px; } .headlines span { color: var(--soft); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(520px, 1fr)); gap: 14px; }
.charts svg { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); } svg .title { font-size: 14px; font-weight: 600; fill: var(--ink); }
svg .grid { stroke: var(--line); } svg .series { fill: none; stroke-width: 2.2; }
svg .legend { fill: var(--ink); }
table { border-collapse: collapse; background: var(--paper); border: 1px solid var(--line); font-size: 13px; margin: 8px 0; }
th, td { padding: 4px 8px; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); } th { background: #eef1f6; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.alarm { background: #fdecec; border-left: 5px solid var(--bad); padding: 12px 16px; white-space: pre-wrap; font-size: 14px; }
.filter { margin: 8px 0; } .filter input { font: inherit; padding: 5px 9px; width: 26em; border: 1px solid var(--line); border-radius: 6px; }
.timeline { list-style: none; margin: 0; padding: 6px 0; background: var(--paper); border: 1px solid var(--line); border-radius: 8px;
  font: 12.5px/1.6 ui-monospace, monospace; max-height: 720px; overflow: auto; }
.timeline li { padding: 0 14px; border-left: 4px solid transparent; white-space: pre-wrap; }
.timeline time { display: inline-block; width: 11ch; text-align: right; margin-right: 2ch; color: var(--soft); }
.timeline .done { border-color: var(--ours); background: #eef5fc; } .timeline .broken { border-color: var(--bad); background: #fdecec; }
.timeline .seen { color: var(--soft); }
"#;

pub const FILTER: &str = "<div class=\"filter\"><input id=\"filter\" placeholder=\"show only lines with, e.g. host-3\" \
                          aria-label=\"filter\"> <span id=\"shown\"></span></div>\n";

pub const SCRIPT: &str = r#"
const field = document.getElementById('filter');
if (field) {
  const lines = [...document.querySelectorAll('.timeline li')], shown = document.getElementById('shown');
  const show = () => {
    const words = field.value.toLowerCase();
    let count = 0;
    for (const line of lines) { const fits = line.textContent.toLowerCase().includes(words); line.hidden = !fits; count += fits; }
    shown.textContent = count + ' of ' + lines.length + ' events';
  };
  field.addEventListener('input', show);
  show();
  // What broke a law stands at the end.
  if (document.querySelector('.alarm')) lines.at(-1)?.scrollIntoView({ block: 'nearest' }), scrollTo(0, 0);
}
"#;
