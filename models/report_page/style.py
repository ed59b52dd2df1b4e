"""The page's only style sheet: light and dark, on paper, narrow and wide."""

from __future__ import annotations

CSS = """
:root{color-scheme:light dark;--page:#fff;--card:#f6f8fa;--ink:#1c2128;--soft:#57606a;--line:#d0d7de;
--before:#6e7781;--after:#0a5fd1;--good:#116329;--bad:#b3261e;--warn:#fff4d6;--edge:#9a6700;
--s1:#0a5fd1;--s2:#bc4c00;--s3:#1a7f37;--s4:#8250df;--s5:#9a6700;--s6:#6e7781}
@media (prefers-color-scheme:dark){:root{--page:#0d1117;--card:#161b22;--ink:#e6edf3;--soft:#9da7b3;--line:#3d444d;
--before:#9da7b3;--after:#58a6ff;--good:#56d364;--bad:#ff8178;--warn:#2d2410;--edge:#d29922;
--s1:#58a6ff;--s2:#f0883e;--s3:#56d364;--s4:#bc8cff;--s5:#d29922;--s6:#9da7b3}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:72rem;margin:0 auto;padding:1.5rem 1.25rem 3rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .5rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.25rem 0 .6rem;padding-top:.9rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.2rem 0 .3rem;overflow-wrap:anywhere}
p{margin:.4rem 0;max-width:50rem}
.lead{font-size:1.2rem;line-height:1.5}
.soft,figcaption,caption,dt{color:var(--soft)}
.good{color:var(--good)}.bad{color:var(--bad)}
ul.notices{list-style:none;padding:0;margin:.8rem 0}
ul.notices li{background:var(--warn);border-left:4px solid var(--edge);padding:.5rem .75rem;margin:.4rem 0;
overflow-wrap:anywhere}
.scroll{overflow:auto;max-width:100%}
.tall{max-height:34rem;border:1px solid var(--line);border-radius:6px}
.scroll:focus-visible{outline:2px solid var(--after)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.4rem 0;font-weight:600;color:var(--ink)}
th,td{padding:.35rem .6rem;text-align:right;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600}
thead th{background:var(--card);white-space:nowrap}
.tall thead th{position:sticky;top:0;z-index:1}
th[scope=row],.left{text-align:left}
tbody th{font-weight:400;min-width:8rem;overflow-wrap:anywhere}
td{white-space:nowrap}
td.wrap{white-space:normal;text-align:left;min-width:9rem}
td.wrap.soft{text-align:right}
td.draw{width:24%;min-width:6rem}
small{color:var(--soft);display:block}
.grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:.5rem 2rem}
figure{margin:.6rem 0}
svg{display:block;width:100%;overflow:visible}
.fill.before,.bar .before{fill:var(--before)}.fill.after{fill:var(--after)}.fill.none{fill:var(--line)}
.fill.back{fill:var(--line)}.pale{opacity:.45}.mark{fill:var(--ink)}
.stroke{stroke-width:2}.stroke.before{stroke:var(--before)}.stroke.after{stroke:var(--after)}
line.grid{stroke:var(--line);stroke-width:1}
text.label{fill:var(--soft);font-size:12px;stroke:var(--page);stroke-width:4px;paint-order:stroke}
text.middle{text-anchor:middle}text.end{text-anchor:end}
.legend{margin:.1rem 0 .3rem;font-size:.9rem}
.key{margin-right:1.1rem;white-space:nowrap}
.key::before{content:"";display:inline-block;width:.75em;height:.75em;margin-right:.4em;border-radius:2px;
background:var(--before)}
.key.after::before{background:var(--after)}
.s1{fill:var(--s1)}.s2{fill:var(--s2)}.s3{fill:var(--s3)}.s4{fill:var(--s4)}.s5{fill:var(--s5)}.s6{fill:var(--s6)}
.key.s1::before{background:var(--s1)}.key.s2::before{background:var(--s2)}.key.s3::before{background:var(--s3)}
.key.s4::before{background:var(--s4)}.key.s5::before{background:var(--s5)}.key.s6::before{background:var(--s6)}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.2rem 1rem;margin:.5rem 0}
dd{margin:0;overflow-wrap:anywhere}
pre{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:.75rem;overflow:auto;font-size:.85rem;
max-height:34rem}
code{font-size:.9em;overflow-wrap:anywhere}
footer{margin-top:2.5rem;color:var(--soft);font-size:.9rem}
@media (max-width:36rem){main{padding:1rem .75rem 2rem}h1{font-size:1.3rem}.lead{font-size:1.05rem}
th,td{padding:.3rem .25rem;font-size:.8rem}tbody th,td.wrap{min-width:5rem}td,thead th{white-space:normal}
td.draw{min-width:3rem}
dl{grid-template-columns:1fr}dt{margin-top:.4rem}}
@media print{:root{--page:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;--before:#777;--after:#0a5fd1;
--warn:#fff;--good:#116329;--bad:#b3261e;--s1:#0a5fd1;--s2:#bc4c00;--s3:#1a7f37;--s4:#8250df;--s5:#9a6700;--s6:#6e7781}
body{font-size:10pt}main{max-width:none;padding:0}.scroll,pre{overflow:visible;max-height:none;border:0}
pre{white-space:pre-wrap}h2,h3,caption{break-after:avoid}tr,figure,li{break-inside:avoid}
thead{display:table-header-group}.tall thead th{position:static}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""
