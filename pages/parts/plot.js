// What the charts share. Python puts this text before a component's own script (plotly_script.py), so
// that there is no build step: names here must not be declared again there.

const signalbox = (globalThis.__signalbox ??= {})

// Plotly's script, which the page's shell loads once (early.js); rejected where it does not arrive.
const plotly = (url) => signalbox.plotly(url)

// What was asked for before this page was there, by its shell or where a link was pressed; else null.
async function prefetched(url) {
  const begun = signalbox.prefetched?.[url]
  delete signalbox.prefetched?.[url]
  return begun ? begun.catch(() => null) : null
}

function theme(element) {
  const style = getComputedStyle(element)
  const read = (name, otherwise) => style.getPropertyValue(name).trim() || otherwise
  return {
    text: read("--st-text-color", "#222"),
    quiet: read("--st-gray-text-color", "#666"),
    line: read("--st-border-color", "#ddd"),
    paper: read("--st-background-color", "#fff"),
    warning: read("--st-orange-color", "#e69f00"),
    font: read("--st-font", "sans-serif"),
    colors: read("--st-chart-categorical-colors", "#0072b2,#d55e00,#009e73").split(",").map((c) => c.trim()),
  }
}

// On a touch screen a drag scrolls the page.
const touch = () => matchMedia("(pointer: coarse)").matches

// Plotly reads tags in a name; and whether MathJax is there, where it finds dollar signs.
const asText = (name) => name.replaceAll("&", "&amp;").replaceAll("<", "&lt;")

// Plotly draws in steps, and stumbles over a plot that is purged between two of them.
const drawings = new WeakMap()

function drawing(plot, promise) {
  drawings.set(plot, Promise.allSettled([drawings.get(plot), promise]))
}

function purge(plot) {
  Promise.resolve(drawings.get(plot)).then(() => globalThis.Plotly?.purge(plot))
}

// Numbers and durations as pages/parts/formats.py has them.

// Four significant digits, `3e-04` where it is tiny.
function figure(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–"
  const size = Math.abs(value)
  let text
  if (value === 0) text = "0"
  else if (size >= 1e-3 && size < 1e6) {
    text = size < 10 ** digits ? String(Number(value.toPrecision(digits))) : count(Math.round(value))
  } else {
    text = value.toExponential(digits - 2).replace(/\.?0*e/, "e").replace(/e([+-])(\d)$/, "e$10$2")
  }
  return text.replaceAll("-", "−")
}

const count = (value) => value.toLocaleString("en-GB", { maximumFractionDigits: 0 })

// `0.4 s`, `12 s`, `4 min 0 s`, `2 h 5 min`, `3 d 4 h`: two units at most.
function duration(seconds) {
  seconds = Math.max(0, seconds)
  if (seconds < 9.95) return `${Number(seconds.toFixed(1))} s`
  const whole = Math.round(seconds)
  for (const [size, unit, small, smallUnit] of [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]]) {
    if (whole >= size) return `${Math.floor(whole / size)} ${unit} ${Math.floor((whole % size) / small)} ${smallUnit}`
  }
  return `${whole} s`
}

// Single parameters of the address; all others, and the history, stay as they are.
function readAddress(name) {
  return new URLSearchParams(location.search).get(name)
}

function writeAddress(values) {
  const url = new URL(location.href)
  for (const [name, value] of Object.entries(values)) {
    if (value === null || value === undefined || value === "") url.searchParams.delete(name)
    else url.searchParams.set(name, value)
  }
  if (url.href !== location.href) history.replaceState(history.state, "", url)
}

// How a choice is written into the address, and read back; what makes no sense is none.
const SMOOTHING = 0.6

const short = (value) => String(Number(value.toPrecision(14)))

const number = (text) => (text && Number.isFinite(Number(text)) ? Number(text) : null)

function smoothingOf(text) {
  return Math.min(0.99, Math.max(0, number(text) ?? SMOOTHING))
}

// `x0~x1~y0~y1`, empty where an axis shows all.
function zoomText({ x, y }) {
  return x || y ? [...(x ?? ["", ""]), ...(y ?? ["", ""])].map((v) => (v === "" ? "" : short(v))).join("~") : null
}

const pair = (a, b) => (Number.isFinite(a) && Number.isFinite(b) && a < b ? [a, b] : null)

function zoomOf(text) {
  const [x0, x1, y0, y1] = (text ?? "").split("~").map(number)
  return { x: pair(x0, x1), y: pair(y0, y1) }
}

// The exponential moving average that TensorBoard draws, started at zero and divided by what that
// takes away (1 − weight^n after n values), so that the first values are not drawn towards it; where
// a value is missing so is its average, and it does not count.
// Source: tensorboard/components/vz_line_chart2/line-chart.ts, resmoothDataset.
function ema(values, weight) {
  let sum = 0
  let left = 1 // weight^n
  return values.map((value) => {
    if (!Number.isFinite(value)) return value
    sum = sum * weight + (1 - weight) * value
    left *= weight
    return weight < 1 ? sum / (1 - left) : value
  })
}

// The range that holds the values, or with `outliers` false those from the 5th to the 95th percentile,
// with a margin on both sides. Source of that choice: TensorBoard, vz_chart_helpers, computeDomain.
// Of a `log` axis only positive values count, and the margin is one of their logarithms. Null: there are none.
function extent(values, { outliers = true, log = false, margin = 0.06 } = {}) {
  let known = values.filter((v) => Number.isFinite(v) && (!log || v > 0))
  if (!known.length) return null
  if (log) known = known.map(Math.log10)
  let low = Infinity
  let high = -Infinity
  if (outliers || known.length < 20) {
    for (const v of known) {
      if (v < low) low = v
      if (v > high) high = v
    }
  } else {
    known.sort((a, b) => a - b)
    low = known[Math.floor((known.length - 1) * 0.05)]
    high = known[Math.ceil((known.length - 1) * 0.95)]
    margin = Math.max(margin, 0.15)
  }
  const pad = high > low ? (high - low) * margin : Math.abs(low) * 0.1 || (log ? 0.1 : 1)
  return log ? [10 ** (low - pad), 10 ** (high + pad)] : [low - pad, high + pad]
}

// Curves. An answer of /api/training/curve is made even (`curve`): `edge` is the first row of each bin
// and, last, the row behind them all; each series has `bin`, and of single rows also min, max and
// their steps. Nothing in it is changed afterwards.

function curve(answer) {
  const length = answer.bins.step.length
  const size = 2 ** answer.level
  const edge = Array.from({ length: length + 1 }, (_, i) => answer.first_row + i * size)
  if (length) edge[length] = Math.min(edge[length], Math.max(answer.rows, edge[length - 1] + 1))
  const single = answer.level === 0
  const bins = {
    ...answer.bins,
    last_step: answer.bins.last_step ?? answer.bins.step,
    last_epoch: answer.bins.last_epoch ?? answer.bins.epoch,
    last_time: answer.bins.last_time ?? answer.bins.time,
  }
  const series = {}
  for (const [name, given] of Object.entries(answer.series)) {
    const bin = given.bin ?? Array.from({ length }, (_, i) => i)
    const steps = single ? bin.map((i) => answer.bins.step[i]) : null
    series[name] = {
      bin,
      mean: given.mean,
      min: given.min ?? given.mean,
      max: given.max ?? given.mean,
      min_step: given.min_step ?? steps,
      max_step: given.max_step ?? steps,
      bad: given.bad ?? (single ? bin.filter((_, i) => given.mean[i] === null).map((i) => [i, 1]) : []),
    }
  }
  return { rows: answer.rows, indexed: answer.indexed, live: answer.live, level: answer.level, edge, bins, series }
}

const SERIES_COLUMNS = ["mean", "min", "max", "min_step", "max_step"]

// The bins from one place to another, as a curve.
function part(whole, from, to) {
  const bins = {}
  for (const [name, column] of Object.entries(whole.bins)) bins[name] = column.slice(from, to)
  const series = {}
  for (const [name, s] of Object.entries(whole.series)) {
    const a = firstAtLeast(s.bin, from)
    const b = firstAtLeast(s.bin, to)
    const cut = { bin: s.bin.slice(a, b).map((i) => i - from) }
    for (const column of SERIES_COLUMNS) cut[column] = s[column].slice(a, b)
    cut.bad = s.bad.filter(([i]) => i >= from && i < to).map(([i, n]) => [i - from, n])
    series[name] = cut
  }
  return { ...whole, edge: whole.edge.slice(from, to + 1), bins, series }
}

function joined(before, after) {
  const shift = before.bins.step.length
  if (!shift) return { ...after, edge: after.edge.length ? after.edge : before.edge }
  if (!after.bins.step.length) return before
  const bins = {}
  for (const name of Object.keys(before.bins)) bins[name] = before.bins[name].concat(after.bins[name])
  const series = {}
  for (const name of Object.keys({ ...before.series, ...after.series })) {
    const [a, b] = [before.series[name], after.series[name]]
    if (!b) { series[name] = a; continue }
    const moved = { ...b, bin: b.bin.map((i) => i + shift), bad: b.bad.map(([i, n]) => [i + shift, n]) }
    series[name] = a ? {} : moved
    if (a) for (const column of ["bin", "bad", ...SERIES_COLUMNS]) series[name][column] = a[column].concat(moved[column])
  }
  return { ...before, edge: [...before.edge.slice(0, -1), ...after.edge], bins, series }
}

// Where the first number that is at least so large stands in a rising column.
function firstAtLeast(column, least) {
  let [low, high] = [0, column.length]
  while (low < high) {
    const middle = (low + high) >> 1
    if (column[middle] < least) low = middle + 1
    else high = middle
  }
  return low
}

// A curve with an increment of it: the increment's bins take the place of those from its first row on.
function grown(before, increment) {
  if (!before || increment.level !== before.level || !(increment.edge[0] > 0)) return increment
  const size = 2 ** before.level
  const keep = increment.edge[0] / size - before.edge[0] / size
  const { rows, indexed, live } = increment
  return { ...joined(part(before, 0, keep), increment), rows, indexed, live }
}

// A curve whose bins in the range of the detail are the detail's.
function refined(coarse, detail) {
  if (!detail?.bins.step.length) return coarse
  const begin = detail.edge[0]
  const end = detail.edge[detail.edge.length - 1]
  const before = firstAtLeast(coarse.edge, begin + 1) - 1 // bins that end before it
  const after = firstAtLeast(coarse.edge.slice(0, -1), end)
  const all = coarse.bins.step.length
  return joined(joined(part(coarse, 0, Math.max(0, before)), detail), part(coarse, after, all))
}

// Where a step of a bin stands on an x axis, as a function of both; null where that is not known, and
// no function where it is not known of any. `step`, `epoch`, `time` (seconds since the first point that has a
// time), `clock` (ms since 1970).
function scale({ bins }, axis) {
  if (axis === "step") return (_, step) => step
  if (axis === "epoch") return epochs(bins)
  const origin = bins.time.find((t) => t !== null)
  if (origin === undefined) return null
  const at = between(bins, bins.time, bins.last_time)
  if (axis === "clock") return at
  return (i, step) => {
    const moment = at(i, step)
    return moment === null ? null : (moment - origin) / 1000
  }
}

// Inside a bin what is known of its two ends is taken to grow evenly with the steps.
function between(bins, from, to) {
  return (i, step) => {
    if (from[i] === null) return null
    const steps = bins.last_step[i] - bins.step[i]
    return steps > 0 ? from[i] + ((to[i] ?? from[i]) - from[i]) * ((step - bins.step[i]) / steps) : from[i]
  }
}

// Most jobs log the epoch as a whole number: its steps are spread evenly until the next one begins, or
// all of an epoch would stand in one place.
function epochs(bins) {
  const steps = []
  const begun = []
  for (const [i, first] of bins.epoch.entries()) {
    for (const [step, epoch] of [[bins.step[i], first], [bins.last_step[i], bins.last_epoch[i]]]) {
      if (epoch === null) continue
      if (!Number.isInteger(epoch)) return between(bins, bins.epoch, bins.last_epoch)
      if (!begun.length || epoch > begun[begun.length - 1]) {
        steps.push(step)
        begun.push(epoch)
      }
    }
  }
  if (!begun.length) return null
  const last = begun.length - 1
  const newest = bins.last_step[bins.last_step.length - 1]
  const pace = last ? (steps[last] - steps[0]) / (begun[last] - begun[0]) : 1
  const end = Math.max(newest + 1, steps[last] + pace) // of the epoch that is under way
  return (_, step) => {
    const k = Math.max(0, firstAtLeast(steps, step + 1) - 1)
    const [to, length] = k < last ? [steps[k + 1], begun[k + 1] - begun[k]] : [end, 1]
    return begun[k] + (Math.max(0, step - steps[k]) / Math.max(1, to - steps[k])) * length
  }
}

// The line through the means of a series: at the middle of each bin, or where its only value is.
function means({ bins, series }, name, at) {
  const s = series[name]
  const steps = s.bin.map((i, j) =>
    s.min_step[j] !== null && s.min_step[j] === s.max_step[j] ? s.min_step[j] : (bins.step[i] + bins.last_step[i]) / 2)
  return { x: s.bin.map((i, j) => at(i, steps[j])), y: s.mean, steps }
}

// The line through the extremes of a series: of each bin its lowest and highest, in the order of
// their steps. So no peak is lost however long the run is. Null is a gap: no number there.
function extremes({ bins, series }, name, at) {
  const s = series[name]
  const [x, y, steps] = [[], [], []]
  const push = (i, step, value) => {
    x.push(at(i, step))
    y.push(value)
    steps.push(step)
  }
  for (const [j, i] of s.bin.entries()) {
    const [low, high] = [s.min_step[j], s.max_step[j]]
    if (s.min[j] === null) push(i, bins.step[i], null)
    else if (low === high) push(i, low, s.min[j])
    else if (low < high) { push(i, low, s.min[j]); push(i, high, s.max[j]) }
    else { push(i, high, s.max[j]); push(i, low, s.min[j]) }
  }
  return { x, y, steps }
}

// A logged name as a heading: `val_accuracy` is `Val accuracy`. On one line, and of a stranger's name
// nothing that has no width or turns the writing.
function title(name, titles = {}) {
  if (Object.hasOwn(titles, name)) return titles[name]
  const plain = name.replace(/[\p{Cf}\p{Cs}]/gu, "").replace(/[\s\p{Cc}]+/gu, " ").trim()
  const words = (plain.length <= 40 ? plain : plain.slice(0, 39).trimEnd() + "…").replaceAll("_", " ")
  return words.slice(0, 1).toUpperCase() + words.slice(1)
}

// What is measured now and then rather than logged at each step is shown as it is: each point counts.
const isMeasured = (name) => /^(eval|val|valid|validation|test)(_|$|\/|-)/i.test(name)

// Those are measured as they are, or follow a plan: their lines are not smoothed.
const isPlain = (name) => isMeasured(name) || name === "learning_rate"

// From so many seconds on, an axis of times is in this unit.
const UNITS = [[172_800, 86_400, "days"], [7200, 3600, "hours"], [180, 60, "minutes"], [0, 1, "seconds"]]

const CONFIG = { typesetMath: false, displaylogo: false, displayModeBar: false, doubleClick: false, scrollZoom: false, showTips: false }
