"""The shell of a report in HTML: one file, without scripts and without anything from elsewhere."""

from rap_jax.reproduce.elements import Html, element, joined

# Blue is better than the paper, orange is worse (Okabe-Ito), in three steps; the sign stands there as well.
_STYLE = """
:root { color-scheme: light dark;
  --back: #fff; --text: #1a1d21; --faint: #5d6570; --rule: #d8dce1; --soft: #f4f6f8; --link: #005a9c;
  --up1: #e2eff9; --up2: #b3d7f2; --up3: #7fbce8; --down1: #fcebdd; --down2: #f8cba4; --down3: #f0a66a;
  --same: #eceef1; }
@media (prefers-color-scheme: dark) { :root {
  --back: #14171a; --text: #e6e8ea; --faint: #a0a8b2; --rule: #343a41; --soft: #1e2226; --link: #7fbce8;
  --up1: #14303f; --up2: #114b70; --up3: #0a68a3; --down1: #402813; --down2: #683b10; --down3: #96500c;
  --same: #2b3036; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1.2rem 1.5rem 4rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .4rem 0 .6rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p, li { max-width: 48rem; }
p { margin: .5rem 0; }
ul { margin: .4rem 0; padding-left: 1.2rem; }
a { color: var(--link); }
code { font: .82em/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--soft); padding: .6rem .8rem; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.faint, figcaption { color: var(--faint); font-size: .85rem; }
.scroll { overflow-x: auto; margin: .6rem 0; border: 1px solid var(--rule); border-radius: 8px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
tr:last-child > th, tr:last-child > td { border-bottom: 0; }
thead th { background: var(--soft); font-size: .85rem; white-space: nowrap; }
.list { width: 100%; font-size: .88rem; }
.grid { width: 100%; }
.grid th[scope=row] { position: sticky; left: 0; z-index: 1; background: var(--soft); max-width: 7.5rem; }
.grid td { min-width: 12rem; border-left: 1px solid var(--rule); }
.value { display: grid; grid-template-columns: 4.6rem 3rem 1fr; align-items: baseline; gap: 0 .3rem;
  margin-bottom: .4rem; }
.label { font-size: .8rem; color: var(--faint); }
.mean { font-weight: 650; text-align: right; }
.mean a { color: inherit; text-decoration: none; }
.mean a:hover, .mean a:focus { text-decoration: underline; }
.about { grid-column: 1 / -1; font-size: .75rem; line-height: 1.35; color: var(--faint); }
.about span { display: inline-block; white-space: nowrap; }
.about span:not(:last-child)::after { content: "·"; padding: 0 .3em; }
.chip { justify-self: end; font-size: .78rem; padding: 0 .4rem; border-radius: 999px; white-space: nowrap;
  background: var(--same); }
.up1 { background: var(--up1); } .up2 { background: var(--up2); } .up3 { background: var(--up3); }
.down1 { background: var(--down1); } .down2 { background: var(--down2); } .down3 { background: var(--down3); }
.size { font-size: .72rem; line-height: 1.35; color: var(--faint); padding-top: .25rem;
  border-top: 1px dotted var(--rule); }
.legend { display: flex; flex-wrap: wrap; gap: .3rem .9rem; font-size: .82rem; color: var(--faint);
  align-items: center; }
.legend .chip { color: var(--text); }
figure { margin: .8rem 0; overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 1.2rem; }
details { margin: .5rem 0; border: 1px solid var(--rule); border-radius: 8px; padding: .4rem .8rem; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 600px) { body { padding: .8rem .8rem 3rem; font-size: 15px; } h1 { font-size: 1.3rem; }
  figure img { width: 38rem; max-width: none; } }
@media print { details { border: 0; } .scroll { overflow: visible; border: 0; } }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, *content: str) -> str:
    """A whole page.

    Args:
      title: of the page and above it.
      content: elements, or texts, which are escaped.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", title),
        element("style", Html(_STYLE)),
    )
    body = element("body", element("main", element("h1", title), joined(*content)))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"
