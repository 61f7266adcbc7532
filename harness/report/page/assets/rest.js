"use strict";
// Maps, claims and versions.

function setUpMaps() {
  const maps = DATA.maps;
  setChoices("map", maps.map((map, place) => [place, `${map.study}: ${map.name.replaceAll("_", " ")}`]));
  const show = () => {
    const map = maps[Number(byId("map").value)], image = byId("map-image");
    drawMap(map);
    byId("map-note").textContent = !map ? "No maps are recorded: job=maps draws them into a study." : map.rows ? map.note : map.image
      ? "A layer's true attention, what the method expects, and what it keeps, as job=maps drew it; the scales stand beside it."
      : `Too many maps for one page: this one lies in ${map.study}/maps/${map.name}.png.`;
    if (!map || !map.image) return image.removeAttribute("src");  // none, or the map of a head
    image.src = map.image;
    image.alt = `maps of attention of ${map.study}, ${map.name}`;
    return undefined;
  };
  byId("map").addEventListener("change", show);
  whenSeen("maps", show);
}

const FAINTEST = 0.001;
const INFERNO = [[0, "#000004"], [0.25, "#57106e"], [0.5, "#bc3754"], [0.75, "#f98e09"], [1, "#fcffa4"]];

// The map of one head, query blocks down and key blocks across, on a logarithmic scale.
function drawMap(map) {
  byId("map-plot").hidden = !map || !map.rows;
  if (!map || !map.rows) return;
  const n = map.rows.length, side = Math.min(byId("maps").clientWidth, 560);
  const filled = map.rows.map((row) => Array.from({ length: n }, (_, k) => (k < row.length ? row[k] : null)));
  const powers = [-3, -2, -1, 0];
  Plotly.react("map-plot", [{
    type: "heatmap", z: filled.map((row) => row.map((share) => (share === null ? null : Math.log10(Math.max(FAINTEST, share))))), text: filled,
    zmin: -3, zmax: 0, colorscale: INFERNO, hovertemplate: "query block %{y}, key block %{x}<br>share of the row: %{text:.4f}<extra></extra>",
    colorbar: { thickness: 12, tickvals: powers, ticktext: powers.map((power) => String(10 ** power)), title: { text: "share" } },
  }], layout({ width: side, height: side - 20, margin: { l: 50, r: 10, t: 10, b: 45 },
    xaxis: { title: { text: "key block" }, showgrid: false, zeroline: false },
    yaxis: { title: { text: "query block" }, autorange: "reversed", showgrid: false, zeroline: false } }), { ...CONFIG, displayModeBar: false });
}

function verdictKind(verdict) {
  if (/^holds in part|^holds(,| at| by| for)/.test(verdict)) return "part";
  return verdict.startsWith("holds") ? "holds" : verdict.startsWith("does not hold") ? "fails" : "open";
}

function table(titles, rows) {
  const node = document.createElement("table"), head = node.createTHead().insertRow();
  head.append(...titles.map((title) => element("th", title)));
  const body = node.createTBody();
  for (const cells of rows) {
    const row = body.insertRow();
    for (const cell of cells) row.insertCell().append(cell);
  }
  return node;
}

function setUpClaims() {
  const { claims, stories } = DATA.claims;
  const verdicts = [...counted(claims.map((claim) => claim.verdict))].sort((a, b) => b[1] - a[1]);
  setChoices("verdict", [["", `all ${claims.length}`], ...verdicts.map(([verdict, count]) => [verdict, `${verdict} (${count})`])]);
  const show = () => {
    const chosen = claims.filter((claim) => !byId("verdict").value || claim.verdict === byId("verdict").value), parts = [];
    for (const part of new Set(chosen.map((claim) => claim.part))) {
      const rows = chosen.filter((claim) => claim.part === part);
      parts.push(element("h3", part), table(["no.", "claim", "published", "here", "verdict"],
        rows.map((claim) => [claim["no."], claim.claim, claim.published, claim.here, element("span", claim.verdict, `verdict ${verdictKind(claim.verdict)}`)])));
      for (const number of new Set(rows.map((claim) => claim["no."]))) if (stories[number]) parts.push(story(number, stories[number]));
    }
    byId("claims-list").replaceChildren(...parts);
  };
  byId("claims-note").textContent = claims.length ? "What papers claim, and what these studies measured on small models. Letters say where a number is from: P the paper, R its repository, F a figure, S another paper." : "There is no CLAIMS.md beside the studies.";
  byId("verdict").addEventListener("change", show);
  addEventListener("hashchange", openStory);
  show();
  openStory();
}

function story(number, { title, html }) {
  const node = document.createElement("details"), body = document.createElement("div");
  node.id = `claim-${number}`;
  body.innerHTML = html;  // made of the file by a Markdown library that lets no HTML through
  node.append(element("summary", `${number}. ${title}`), body);
  return node;
}

function openStory() {
  const target = /^#claim-\d+$/.test(location.hash) && byId(location.hash.slice(1));
  if (target) { target.open = true; target.scrollIntoView(); }
}

function setUpVersions() {
  byId("versions-note").textContent = `Every process that measured, those alike together. This page is drawn by plotly ${DATA.libraries.plotly}; its table by DataTables, as itables ${DATA.libraries.itables} ships it.`;
  byId("versions-list").replaceChildren(table(["study", "device", "days", "processes", "commits", "packages"], DATA.versions.map((entry) => [
    entry.study, entry.device, entry.first === entry.last ? entry.first : `${entry.first} to ${entry.last}`, String(entry.runs), entry.commits.join(", "), entry.packages])));
}
