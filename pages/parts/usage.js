// What a job uses of the machine over time. It asks the server for the points since the last one, so
// that a page that stands open costs no run of a script, and draws them as plain SVG.
// `data`: {job_id, live, gpus}

const WIDTH = 300
const HEIGHT = 72
const TOP = 15 // above it the scale is written
const ASK_MS = 2000
const AGAIN_MS = 5000
const SVG = "http://www.w3.org/2000/svg"

const CHARTS = [
  { name: "CPU", of: "cores", words: cores },
  { name: "Memory", of: "memory_bytes", words: bytes },
  { name: "GPU memory", of: "gpu_memory_bytes", words: bytes, gpu: true },
  { name: "GPU load", of: "gpu_percent", words: (v) => `${Math.round(v)} %`, top: 100, gpu: true },
]

function cores(value) {
  const text = value.toFixed(value < 0.095 ? 2 : value < 9.95 ? 1 : 0)
  return `${text} ${text === "1.0" ? "core" : "cores"}`
}

function bytes(value) {
  let rest = value
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (rest < 1023.5) return `${unit === "B" || rest >= 99.95 ? Math.round(rest) : rest.toFixed(1)} ${unit}`
    rest /= 1024
  }
  return `${rest.toFixed(1)} TiB`
}

function made(tag, className, text) {
  const element = document.createElement(tag)
  if (className) element.className = className
  if (text) element.textContent = text
  return element
}

const drawn = (tag, attributes) => {
  const element = document.createElementNS(SVG, tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  return element
}

const clock = (at) => new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" })
const say = (element, text) => { if (element.textContent !== text) element.textContent = text }

// A gap in the readings is a pause, or a server that was closed: the line is broken there.
function path(points, x, y) {
  const gaps = points.slice(1).map((p, n) => p[0] - points[n][0]).sort((a, b) => a - b)
  const longest = Math.max(10_000, 5 * (gaps[gaps.length >> 1] ?? 0))
  let line = ""
  points.forEach(([at, value], n) => {
    const goesOn = n && at - points[n - 1][0] <= longest
    line += `${goesOn ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`
    if (!goesOn) line += "h0.01" // a point by itself is seen too
  })
  return line
}

function chart(kind) {
  const figure = made("figure")
  const caption = made("figcaption")
  const now = made("span")
  caption.append(made("span", "", kind.name), now)
  const plot = made("div", "signalbox-use-plot")
  const top = made("span", "signalbox-use-top")
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": kind.name })
  const line = drawn("path", { fill: "none", "vector-effect": "non-scaling-stroke" })
  const cursor = drawn("path", { class: "signalbox-use-cursor", "vector-effect": "non-scaling-stroke" })
  const scale = drawn("path", { class: "signalbox-use-scale", d: `M0 ${TOP}H${WIDTH}`, "vector-effect": "non-scaling-stroke" })
  svg.append(scale, line, cursor)
  plot.append(top, svg)
  figure.append(caption, plot)
  let points = []
  let said = ""
  let x, pointer
  function read() {
    if (pointer === undefined || !points.length) {
      cursor.setAttribute("d", "")
      return say(now, said)
    }
    const box = svg.getBoundingClientRect()
    const wanted = ((pointer - box.left) / box.width) * WIDTH
    const near = points.reduce((a, b) => (Math.abs(x(b[0]) - wanted) < Math.abs(x(a[0]) - wanted) ? b : a))
    cursor.setAttribute("d", `M${x(near[0]).toFixed(1)} 0V${HEIGHT}`)
    say(now, `${kind.words(near[1])} at ${clock(near[0])}`)
  }
  plot.addEventListener("pointermove", (event) => { pointer = event.clientX; read() })
  plot.addEventListener("pointerleave", () => { pointer = undefined; read() })
  return { figure, set(all, live) {
    points = all.filter((p) => p[kind.of] !== null).map((p) => [p.at, p[kind.of]])
    if (!points.length) return
    const peak = points.reduce((most, p) => Math.max(most, p[1]), 0)
    const reach = kind.top ?? (peak || 1)
    const begin = all[0].at
    const span = Math.max(1, all.at(-1).at - begin)
    x = (at) => ((at - begin) / span) * WIDTH
    line.setAttribute("d", path(points, x, (value) => HEIGHT - 1 - (value / reach) * (HEIGHT - 1 - TOP)))
    said = live ? `${kind.words(points.at(-1)[1])} now` : `peak ${kind.words(peak)}`
    say(top, kind.words(reach))
    svg.setAttribute("aria-label", `${kind.name}: ${said}, peak ${kind.words(peak)}`)
    read()
  } }
}

// In words: "1.7 cores, 812 MiB now; peak 1.1 GiB".
function words(points, live, hasGpu) {
  if (!points.length)
    return live ? "The first reading is taken a few seconds after the start." : "Nothing was measured: it ended within seconds, or ran before this was kept."
  const last = points.at(-1)
  const peak = (of) => points.reduce((most, p) => Math.max(most, p[of] ?? 0), 0)
  const taken = points.filter((p) => p.cores !== null).map((p) => p.cores)
  const mean = taken.reduce((sum, c) => sum + c, 0) / (taken.length || 1)
  const [cpu, memory, gpuMemory, load] = CHARTS.map((kind) => kind.words)
  const parts = live
    ? [last.cores === null ? "" : cpu(last.cores), `${memory(last.memory_bytes)} now; peak ${memory(peak("memory_bytes"))}`]
    : [`${cpu(mean)} on average`, `at most ${memory(peak("memory_bytes"))}`]
  let text = parts.filter(Boolean).join(", ")
  if (hasGpu && last.gpu_memory_bytes !== null) {
    const busy = last.gpu_percent === null || !live ? "" : `${load(last.gpu_percent)} busy, `
    text += `. GPU: ${busy}${live ? `${gpuMemory(last.gpu_memory_bytes)} now; peak ` : "at most "}${gpuMemory(peak("gpu_memory_bytes"))}`
  }
  return text + "."
}

const mounts = new WeakMap()

function mount(root, data) {
  const said = made("p")
  const grid = made("div", "signalbox-use-grid")
  const charts = CHARTS.filter((kind) => !kind.gpu || data.gpus).map(chart)
  grid.append(...charts.map((each) => each.figure))
  root.replaceChildren(said, grid)
  const points = []
  const state = { key: keyOf(data), live: data.live, asking: false, timer: undefined, stopped: false }
  state.ask = async () => {
    state.asking = true
    let wait = AGAIN_MS
    try {
      const last = points.at(-1)
      const answer = await fetch(`/api/training/usage/${data.job_id}${last ? `?since=${last.at}` : ""}`)
      if (!answer.ok) throw new Error(String(answer.status))
      const found = await answer.json()
      if (state.stopped) return
      points.push(...found.points)
      for (const each of charts) each.set(points, found.live)
      say(said, words(points, found.live, data.gpus))
      wait = found.live || state.live ? ASK_MS : 0
    } catch {
      // the server is gone or busy: what is drawn stays
    }
    state.asking = wait > 0 && !state.stopped
    if (state.asking) state.timer = setTimeout(state.ask, wait)
  }
  state.stop = () => {
    state.stopped = true
    clearTimeout(state.timer)
  }
  return state
}

const keyOf = (data) => `${data.job_id} ${data.gpus}`

export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".signalbox-use")
  if (mounts.get(root)?.key !== keyOf(data)) {
    mounts.get(root)?.stop()
    mounts.set(root, mount(root, data))
    mounts.get(root).ask()
  }
  const state = mounts.get(root)
  state.live = data.live
  if (data.live && !state.asking) state.ask() // it was paused, and is resumed
  return () => {
    mounts.get(root)?.stop()
    mounts.delete(root)
  }
}
