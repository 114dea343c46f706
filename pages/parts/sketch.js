// The first sight of a chart: its lines, grid and numbers where Plotly will draw them, from what Plotly
// is given. It takes a few milliseconds and needs no script of 5 MB, which comes once the page is there;
// then Plotly's chart takes its place and nothing moves. It stays where Plotly cannot be loaded.

const SVG = "http://www.w3.org/2000/svg"

function shape(name, attributes, text = "") {
  const element = document.createElementNS(SVG, name)
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value)
  element.textContent = text
  return element
}

// Where Plotly puts the ticks of a linear axis: plotly.js, src/plots/cartesian/axes.js, `autoTicks`.
function linearTicks([low, high], length, least, nticks) {
  if (!(high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high)))) return { found: [], digits: 0 }
  const count = nticks ?? Math.min(9, Math.max(4, length / least)) + 1
  const rough = (high - low) / count
  const base = 10 ** Math.floor(Math.log10(rough))
  const step = base * ([2, 5, 10].find((round) => rough / base <= round) ?? 10)
  const found = []
  for (let n = Math.ceil(low / step); n * step <= high; n += 1) found.push(n * step)
  return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) }
}

// Their numbers, where they are short: `0.25`, `1500`, and on the x axis `20k`.
function tickTexts({ found, digits }, thousands) {
  const most = Math.max(...found.map(Math.abs))
  const power = most > 0 ? Math.floor(Math.log10(most)) : 0
  if (Math.abs(power) <= 3) return found.map((value) => String(Number(value.toFixed(digits))).replace("-", "−"))
  const unit = { 3: "k", 6: "M", 9: "B" }[3 * Math.round((power - 1) / 3)]
  if (!thousands || !unit) return null
  const scale = { k: 1e3, M: 1e6, B: 1e9 }[unit]
  return found.map((value) => (value ? `${Number((value / scale).toPrecision(6))}${unit}`.replace("-", "−") : "0"))
}

// Points as a path, which is broken where there is none.
function pathOf(points) {
  return points.map((point, n) => (point === null ? "" : `${n && points[n - 1] !== null ? "L" : "M"}${point}`)).join("")
}

// Draw traces into a plot as Plotly would with this layout.
function sketch(plot, traces, form) {
  const [width, height] = [plot.offsetWidth, plot.offsetHeight]
  const { l, r, t, b } = form.margin
  const [w, h] = [width - l - r, height - t - b]
  if (w <= 0 || h <= 0) return
  const { xaxis, yaxis } = form
  const [x0, x1] = xaxis.range
  const [y0, y1] = yaxis.range
  const log = yaxis.type === "log"
  const across = (x) => l + ((x - x0) / (x1 - x0)) * w
  const up = (y) => t + h - ((y - y0) / (y1 - y0)) * h
  const place = log ? (y) => up(Math.log10(y)) : up
  const size = form.font.size
  const root = shape("svg", { width, height, class: "signalbox-sketch", "aria-hidden": "true" })
  const frame = shape("g", { stroke: xaxis.gridcolor, "shape-rendering": "crispEdges" })
  const texts = shape("g", { fill: xaxis.tickfont.color, "font-size": size, "font-family": form.font.family })
  root.append(frame, texts)

  const lay = (axis, length, least) => {
    if (axis.type === "date") return [[], null]
    if (axis.tickvals) return [axis.tickvals, axis.ticktext]
    if (axis.type === "log") return [[], null]
    const ticks = linearTicks(axis.range, length, least, axis.nticks)
    return [ticks.found, tickTexts(ticks, axis === xaxis)]
  }
  const [columns, below] = lay(xaxis, w, 80)
  for (const [n, value] of columns.entries()) {
    const x = across(value)
    frame.append(shape("path", { d: `M${Math.round(x)},${t}V${t + h}` }))
    if (below) texts.append(shape("text", { x, y: t + h + 3 + size, "text-anchor": "middle" }, below[n]))
  }
  const [rows, beside] = lay(yaxis, h, 40)
  for (const [n, value] of rows.entries()) {
    const y = place(value)
    if (y < t - 1 || y > t + h + 1) continue
    frame.append(shape("path", { d: `M${l},${Math.round(y)}H${l + w}` }))
    if (beside) texts.append(shape("text", { x: l - 3.4, y: y + 0.35 * size, "text-anchor": "end" }, beside[n]))
  }
  if (xaxis.title?.text) {
    texts.append(shape("text", { x: l + w / 2, y: height - 5, "text-anchor": "middle", "font-size": Math.round(size * 1.2) }, xaxis.title.text))
  }

  const clip = `signalbox-clip-${sketches += 1}`
  const frameOfLines = shape("clipPath", { id: clip })
  frameOfLines.append(shape("rect", { x: l, y: t, width: w, height: h }))
  const inside = shape("g", { "clip-path": `url(#${clip})`, fill: "none", "stroke-linejoin": "round" })
  root.append(frameOfLines, inside)
  let before = ""
  for (const { x, y, mode, line, marker, opacity = 1, fill, fillcolor, yaxis: other } of traces) {
    if (other || !mode.includes("lines")) continue // marks come with Plotly
    const points = []
    for (let n = 0; n < x.length; n += 1) {
      const at = y[n] === null || y[n] === undefined ? NaN : place(y[n])
      points.push(Number.isFinite(at) ? `${across(x[n]).toFixed(2)},${at.toFixed(2)}` : null)
    }
    const d = pathOf(points)
    if (fill === "tonexty") inside.append(shape("path", { d: `${d}L${before}Z`, fill: fillcolor, opacity }))
    before = points.filter(Boolean).reverse().join("L")
    const drawn = { d, stroke: line.color, "stroke-width": line.width, opacity }
    if (line.dash && line.dash !== "solid") drawn["stroke-dasharray"] = line.dash.replaceAll("px", "")
    if (line.width) inside.append(shape("path", drawn))
    if (!mode.includes("markers")) continue
    for (const [cx, cy] of points.filter(Boolean).map((point) => point.split(","))) {
      inside.append(shape("circle", { cx, cy, r: marker.size / 2, fill: marker.color, opacity }))
    }
  }
  unsketch(plot)
  plot.prepend(root)
}

let sketches = 0

// Once what was sketched has been seen, and the browser has nothing more urgent to do.
function afterPaint(act) {
  const pause = globalThis.requestIdleCallback ?? ((then) => setTimeout(then, 50))
  requestAnimationFrame(() => pause(act, { timeout: 500 }))
}

const unsketch = (plot) => plot.querySelector(":scope > .signalbox-sketch")?.remove()

// Once the sketch of a mount has been seen, Plotly draws, when it is there: `then(mount)`, or with the
// problem where it cannot be loaded.
function takeOver(mount, then) {
  afterPaint(async () => {
    if (mount.painted || mount.stopped) return
    mount.painted = true
    const problem = await plotly(mount.data.script).then(
      () => null,
      () => `The chart can only be looked at: ${mount.data.script} did not arrive.`,
    )
    then(mount, problem)
  })
}
