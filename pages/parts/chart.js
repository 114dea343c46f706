// The live chart of a job. It is mounted once and then asks the server itself (feed.js), so that points
// are there within a second of being logged, without a run of the page; only what is new is sent.
// `data`: {script, job_id, live, titles, empty}

const AXES = ["step", "epoch", "time", "clock"]
const NAMES = { step: "step", epoch: "epoch", time: "", clock: "" }
const FIRST = ["learning_rate", "grad_norm", "samples_per_second", "steps_per_second", "perplexity"]
const LOSSES = ["train_loss", "eval_loss"]
const PLAIN = { axis: "step", smoothing: SMOOTHING, log: false, outliers: false, x: null, y: null, hidden: [] }
const SYMBOLS = {
  checkpoint: "diamond", pause: "square", resume: "triangle-right", stall: "hourglass", retry: "triangle-up", end: "line-ns-open",
}
const DETAIL_BINS = 2000
const MARKS_PACE = 10_000 // ms
const SMALL_PACE = 900
const WORDS_PACE = 1000
const SPOKEN_PACE = 20_000

const mounts = new WeakMap()

// What the reader chose: in the address, so that it can be opened elsewhere, and kept for this tab by job.

function written(view) {
  return {
    cx: view.axis === PLAIN.axis ? null : view.axis,
    cs: view.smoothing === SMOOTHING ? null : short(view.smoothing),
    cl: view.log ? "1" : null,
    co: view.outliers ? "1" : null,
    cz: zoomText(view),
    ch: view.hidden.map((name) => encodeURIComponent(name).replaceAll("~", "%7E")).join("~") || null,
  }
}

function understood(read) {
  const hidden = (read("ch") ?? "").split("~").filter(Boolean).map((name) => {
    try { return decodeURIComponent(name) } catch { return name }
  })
  return {
    axis: AXES.includes(read("cx")) ? read("cx") : PLAIN.axis,
    smoothing: smoothingOf(read("cs")),
    log: read("cl") === "1", outliers: read("co") === "1",
    ...zoomOf(read("cz")), hidden,
  }
}

const KEYS = Object.keys(written(PLAIN))

function restored(jobId) {
  if (KEYS.some((key) => readAddress(key) !== null)) return understood(readAddress)
  let kept = {}
  try {
    kept = JSON.parse(sessionStorage.getItem(`signalbox-chart-${jobId}`)) ?? {}
  } catch { /* a browser that keeps nothing */ }
  return understood((key) => kept[key] ?? null)
}

function keep(mount) {
  const values = written(mount.view)
  writeAddress(values)
  try {
    sessionStorage.setItem(`signalbox-chart-${mount.data.job_id}`, JSON.stringify(values))
  } catch { /* the address has it */ }
}

// What is drawn

function panels(curve) {
  const names = Object.keys(curve.series).filter((name) => curve.series[name].bin.length)
  const losses = LOSSES.filter((name) => names.includes(name))
  const rank = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length)
  const others = names.filter((name) => !losses.includes(name))
    .sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1))
  return losses.length ? { main: losses, side: others } : { main: others.slice(0, 1), side: others.slice(1) }
}

// Where x stands on the axis that is drawn: the unit of a time grows with the run, and a clock shows
// the reader's own time, which Plotly does not know.
function ruler(curve, axis) {
  const at = scale(curve, axis) ?? scale(curve, "step")
  const real = scale(curve, axis) ? axis : "step"
  const { step, last_step } = curve.bins
  const ends = []
  for (const i of step.keys()) ends.push(at(i, step[i]), at(i, last_step[i]))
  const span = extent(ends, { margin: 0.015 })
  let [unit, offset, label] = [1, 0, NAMES[real]]
  if (real === "time" && span) [, unit, label] = UNITS.find(([from]) => span[1] >= from)
  if (real === "clock" && span) offset = new Date(span[0]).getTimezoneOffset() * 60_000
  return {
    axis: real, at, span, label,
    drawn: (x) => (x === null ? null : x / unit - offset),
    meant: (x) => ((typeof x === "string" ? Date.parse(`${x.replace(" ", "T")}Z`) : x) + offset) * unit,
  }
}

function lines(mount, curve, names, rule, { main }) {
  const { look, view } = mount
  const found = []
  for (const name of names) {
    if (view.hidden.includes(name)) continue
    const color = look.colors[(main ? Math.max(0, LOSSES.indexOf(name)) : 2) % look.colors.length]
    const raw = extremes(curve, name, rule.at)
    const middle = means(curve, name, rule.at)
    const smooth = view.smoothing > 0 && !isPlain(name) && middle.y.length > 2 ? ema(middle.y, view.smoothing) : null
    const width = isMeasured(name) ? 2 : 1.6
    const few = raw.x.length < (isMeasured(name) ? 150 : 60)
    const shared = { type: "scatter", name: asText(title(name, mount.data.titles)), connectgaps: false }
    found.push({
      ...shared, x: raw.x.map(rule.drawn), y: raw.y, customdata: raw.steps,
      mode: few ? "lines+markers" : "lines", opacity: smooth ? 0.28 : 1,
      line: { color, width: smooth ? 1 : width }, marker: { color, size: raw.x.length === 1 ? 7 : 4 },
      ...(smooth ? { hoverinfo: "skip" } : { hovertemplate: "step %{customdata:,d}: %{y:.5~g}" }),
    })
    if (smooth) {
      found.push({
        ...shared, x: middle.x.map(rule.drawn), y: smooth, customdata: middle.steps.map((s, i) => [s, middle.y[i]]),
        mode: "lines", line: { color, width },
        hovertemplate: "step %{customdata[0]:,d}: %{customdata[1]:.5~g}, smoothed %{y:.5~g}",
      })
    }
  }
  return found
}

function best(curve) {
  const s = curve.series.eval_loss
  if (!s) return null
  let place = -1
  for (const [j, value] of s.min.entries()) if (value !== null && (place < 0 || value < s.min[place])) place = j
  return place < 0 ? null : { i: s.bin[place], y: s.min[place], step: s.min_step[place] }
}

function star(mount, curve, rule) {
  const found = mount.view.hidden.includes("eval_loss") ? null : best(curve)
  if (!found) return []
  const color = mount.look.colors[1 % mount.look.colors.length]
  return [{
    type: "scatter", mode: "markers", name: "Best held-out", x: [rule.drawn(rule.at(found.i, found.step))], y: [found.y],
    customdata: [found.step], marker: { symbol: "star", size: 13, color, line: { color: mount.look.paper, width: 1.5 } },
    hovertemplate: "step %{customdata:,d}: %{y:.5~g}",
  }]
}

// Small symbols on the axis: what happened to the job, and losses that were not a number.
function signs(mount, curve, names, rule) {
  const { look } = mount
  const { bins } = curve
  const drawn = { x: [], text: [], symbol: [], color: [] }
  const add = (x, text, symbol, color) => {
    if (x === null || x === undefined || !Number.isFinite(x)) return
    drawn.x.push(rule.drawn(x))
    drawn.text.push(asText(text))
    drawn.symbol.push(symbol)
    drawn.color.push(color)
  }
  const last = bins.step.length - 1
  for (const mark of mount.marks) {
    let i = mark.step !== null ? firstAtLeast(bins.last_step, mark.step) : bins.last_time.findIndex((t) => t !== null && t >= mark.time)
    if (i < 0 || i > last) i = last
    if (i < 0) continue
    const step = mark.step ?? bins.last_step[i]
    let x = rule.at(i, Math.min(Math.max(step, bins.step[i]), bins.last_step[i]))
    if (rule.axis === "step") x = step
    if (rule.axis === "clock" && mark.time) x = mark.time
    if (rule.axis === "time" && mark.time) x = (mark.time - bins.time.find((t) => t !== null)) / 1000
    add(x, mark.text, SYMBOLS[mark.kind] ?? "circle", mark.kind === "stall" ? look.warning : look.quiet)
  }
  for (const name of names) {
    if (mount.view.hidden.includes(name)) continue
    for (const [i, times] of curve.series[name].bad) {
      const text = `${title(name, mount.data.titles)} was not a number${times > 1 ? ` ${count(times)} times` : ""} `
      const from = bins.step[i]
      add(rule.at(i, from), `${text}(${times > 1 ? "from " : ""}step ${count(from)})`, "x", look.bad)
    }
  }
  if (!drawn.x.length) return []
  return [{
    type: "scatter", mode: "markers", name: "", x: drawn.x, y: drawn.x.map(() => 0.022), yaxis: "y2", text: drawn.text, cliponaxis: false,
    marker: { symbol: drawn.symbol, color: drawn.color, size: 9, line: { color: look.paper, width: 1 } },
    hovertemplate: "%{text}<extra></extra>", showlegend: false,
  }]
}

// The values that are in sight, for the height of a panel.
function sight(traces, [from, to]) {
  const values = []
  for (const { x, y } of traces) for (const [i, at] of x.entries()) if (at >= from && at <= to) values.push(y[i])
  return values
}

// Of a log axis: 1, 2 and 5 of each decade, or where that is too many, its beginning.
function ticks([low, high]) {
  const decades = Math.log10(high / low)
  if (decades > 8) return {}
  const marks = decades > 2.5 ? [1] : decades > 0.6 ? [1, 2, 5] : [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9]
  const values = []
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const mark of marks) values.push(Number(`${mark}e${power}`))
  }
  return { tickvals: values, ticktext: values.map((v) => figure(v, 3)) }
}

function layout(mount, traces, rule, { main }) {
  const { look, view } = mount
  const log = main && view.log
  const zoom = rule.axis === view.axis ? view.x : null // else the job has no such axis
  const across = (zoom ?? rule.span ?? [0, 1]).map(rule.drawn)
  const curves = traces.filter((trace) => !trace.yaxis)
  let up = main ? view.y : null
  if (up && log && up[0] <= 0) up = null
  up ??= extent(sight(curves, across), { outliers: !view.outliers, log }) ?? [log ? 0.1 : 0, 1]
  const axis = {
    gridcolor: look.line, linecolor: look.line, zeroline: false, automargin: false, ticks: "", autorange: false,
    tickfont: { color: look.quiet }, fixedrange: !main,
  }
  return {
    autosize: true, hovermode: "x", showlegend: false, dragmode: main && !touch() ? "zoom" : false, hoverdistance: 30,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: look.font, color: look.text, size: main ? 12 : 10.5 },
    margin: main ? { l: 54, r: 12, t: 8, b: 42 } : { l: 46, r: 10, t: 4, b: 20 },
    hoverlabel: { bgcolor: look.paper, bordercolor: look.line, font: { color: look.text } },
    xaxis: {
      ...axis, range: across, nticks: main ? undefined : 4,
      title: main && rule.label ? { text: rule.label, standoff: 8, font: { color: look.quiet } } : undefined,
      type: rule.axis === "clock" ? "date" : "linear",
      tickformat: rule.axis === "clock" && !main ? "%H:%M" : undefined,
      hoverformat: { step: ",d", epoch: ".3~f", time: ".3~f", clock: "%-d %b %H:%M:%S" }[rule.axis],
    },
    yaxis: {
      ...axis, range: log ? up.map(Math.log10) : up, type: log ? "log" : "linear", nticks: main ? undefined : 4,
      exponentformat: "power", ...(log ? ticks(up) : {}),
    },
    ...(main ? { yaxis2: { overlaying: "y", range: [0, 1], fixedrange: true, visible: false } } : {}),
  }
}

// Drawing

function schedule(mount) {
  if (mount.frame || mount.stopped) return
  mount.frame = requestAnimationFrame(() => {
    mount.frame = 0
    if (!mount.held) draw(mount) // else once the pointer is let go
  })
}

function draw(mount) {
  if (!mount.curve || mount.stopped) return
  const { root } = mount
  const begun = mount.curve.bins.step.length > 0
  mount.notice.textContent = begun ? "" : mount.data.empty
  mount.notice.hidden = begun
  if (!begun) return
  mount.look = { ...theme(root), bad: theme(root).colors[1] }
  const shown = mount.detail?.finer ? refined(mount.curve, mount.detail.curve) : mount.curve
  const rule = ruler(shown, mount.view.axis)
  const chosen = panels(shown)
  mount.rule = rule
  mount.shown = shown
  legend(mount, chosen.main)
  const curves = [...lines(mount, shown, chosen.main, rule, { main: true }), ...star(mount, shown, rule)]
  const all = [...curves, ...signs(mount, shown, chosen.main, rule)]
  mount.plot.classList.remove("signalbox-skeleton")
  react(mount, mount.plot, all, layout(mount, all, rule, { main: true }))
  if (!mount.painted) takeOver(mount, plotted)
  listen(mount)
  side(mount, chosen.side)
  words(mount)
  controls(mount)
}

function plotted(mount, problem) {
  if (problem) {
    mount.trouble.textContent = problem
    return
  }
  mount.choice += 1 // the small charts too, at once
  schedule(mount)
}

// A plot can be listened to once it is drawn.
function listen(mount) {
  if (mount.listens || !mount.plot.on) return
  mount.listens = true
  mount.plot.on("plotly_relayout", (event) => relaid(mount, event))
  mount.plot.on("plotly_doubleclick", () => change(mount, { x: null, y: null }))
}

function react(mount, plot, traces, form) {
  if (!plot.offsetWidth) return // in a hidden tab it has none, and Plotly throws on it
  if (!globalThis.Plotly || !mount.painted) {
    if (!plot.data) sketch(plot, traces, form)
    return
  }
  drawing(plot, globalThis.Plotly.react(plot, traces, form, CONFIG))
  unsketch(plot)
  mount.observer.observe(plot)
  const at = mount.pointer
  if (at?.plot !== plot) return
  const area = plot.querySelector(".nsewdrag")?.getBoundingClientRect()
  if (area) globalThis.Plotly.Fx.hover(plot, { xpx: at.x - area.left, ypx: at.y - area.top }, "xy")
}

// The small charts: each is drawn when it comes into sight, and only then.
function side(mount, names) {
  const { root } = mount
  const box = mount.side
  for (const [name, panel] of mount.panels) {
    if (names.includes(name)) continue
    purge(panel.lastChild)
    panel.remove()
    mount.panels.delete(name)
  }
  for (const [place, name] of names.entries()) {
    let panel = mount.panels.get(name)
    if (!panel) {
      panel = document.createElement("figure")
      panel.className = "signalbox-panel"
      const caption = document.createElement("figcaption")
      caption.append(document.createElement("span"), document.createElement("b"))
      caption.firstChild.textContent = title(name, mount.data.titles)
      const plot = document.createElement("div")
      plot.className = "signalbox-plot"
      plot.setAttribute("role", "img")
      panel.append(caption, plot)
      mount.panels.set(name, panel)
      panel.dataset.name = name
    }
    if (box.children[place] !== panel) box.insertBefore(panel, box.children[place] ?? null)
    const values = mount.shown.series[name].mean
    const latest = figure(values[values.length - 1], 3)
    panel.querySelector("b").textContent = latest
    panel.lastChild.setAttribute("aria-label", `${title(name, mount.data.titles)}, now ${latest}`)
    mount.sight.observe(panel)
    if (mount.seen.has(panel)) small(mount, panel)
  }
  // Room for it is there from the first frame on, while there may still come some.
  root.classList.toggle("signalbox-alone", !names.length && !mount.curve.live)
  if (!names.length && !box.children.length) box.dataset.empty = "Whatever else the job logs appears here: its learning rate, its throughput, an accuracy."
  else delete box.dataset.empty
}

function small(mount, panel) {
  const { name } = panel.dataset
  if (!mount.shown?.series[name]) return
  // Now and then: the numbers beside are not looked at as closely.
  if (performance.now() - (panel.drawnAt ?? -Infinity) < SMALL_PACE && panel.drawnFor === mount.choice) {
    panel.timer ||= setTimeout(() => {
      panel.timer = 0
      if (!mount.stopped && panel.isConnected) small(mount, panel)
    }, SMALL_PACE)
    return
  }
  panel.drawnAt = performance.now()
  panel.drawnFor = mount.choice
  const traces = lines(mount, mount.shown, [name], mount.rule, { main: false })
  react(mount, panel.lastChild, traces, layout(mount, traces, mount.rule, { main: false }))
}

function legend(mount, names) {
  const titles = mount.data.titles
  const box = mount.legend
  const known = JSON.stringify([names, mount.look.colors])
  if (box.dataset.known !== known) {
    box.dataset.known = known
    box.replaceChildren(...names.map((name) => {
      const key = document.createElement("button")
      key.type = "button"
      key.dataset.name = name
      const swatch = document.createElement("i")
      swatch.style.background = mount.look.colors[Math.max(0, LOSSES.indexOf(name)) % mount.look.colors.length]
      swatch.className = isMeasured(name) ? "signalbox-dotted" : ""
      const text = document.createElement("span")
      text.textContent = title(name, titles)
      key.append(swatch, text)
      key.onclick = () => change(mount, {
        hidden: mount.view.hidden.includes(name) ? mount.view.hidden.filter((n) => n !== name) : [...mount.view.hidden, name],
      })
      return key
    }))
  }
  for (const key of box.children) key.setAttribute("aria-pressed", String(!mount.view.hidden.includes(key.dataset.name)))
}

// The curve in words, for those who cannot see it and those in a hurry.
function summary(curve) {
  const parts = []
  const train = curve.series.train_loss?.mean.filter((v) => v !== null) ?? []
  if (train.length) parts.push(`Train loss went from ${figure(train[0])} to ${figure(train[train.length - 1])}`)
  const lowest = best(curve)
  if (lowest) parts.push(`${parts.length ? "best" : "Best"} held-out ${figure(lowest.y)} at step ${count(lowest.step)}`)
  const steps = curve.bins.last_step
  const text = parts.join(", ") || `${count(curve.rows)} points were logged, none with a loss`
  return `${text}. Last step ${count(steps[steps.length - 1])}.`
}

function words(mount) {
  const now = performance.now()
  if (now - mount.saidAt < WORDS_PACE && mount.curve.live) return
  mount.saidAt = now
  const said = summary(mount.curve) + (mount.curve.indexed < 1 ? ` Still reading: ${Math.floor(mount.curve.indexed * 100)} %.` : "")
  if (mount.said.textContent !== said) mount.said.textContent = said
  mount.plot.setAttribute("aria-label", `Loss. ${said}`)
  if (now - mount.spokenAt < SPOKEN_PACE && mount.curve.live) return
  mount.spokenAt = now
  mount.spoken.textContent = said
}

// The reader's choices

function control(mount, name) {
  return mount.root.querySelector(`[name="${name}"]`)
}

function controls(mount) {
  const { view, curve } = mount
  // Only what is not as it should be: a list that is open at this moment would be closed.
  const set = (name, property, value) => {
    const field = control(mount, name)
    if (field[property] !== value) field[property] = value
  }
  set("axis", "value", view.axis)
  set("smoothing", "value", String(view.smoothing))
  set("log", "checked", view.log)
  set("outliers", "checked", view.outliers)
  control(mount, "smoothing").nextElementSibling.textContent = view.smoothing.toFixed(2)
  control(mount, "follow").setAttribute("aria-pressed", String(!view.x && !view.y))
  if (!curve?.bins.step.length) return
  for (const option of control(mount, "axis").options) {
    const missing = !scale(curve, option.value)
    if (option.disabled !== missing) option.disabled = missing
  }
}

function change(mount, choice, { save = true } = {}) {
  Object.assign(mount.view, choice)
  mount.choice += 1
  if (save) keep(mount)
  controls(mount)
  schedule(mount)
  refine(mount)
}

function relaid(mount, event) {
  const { rule } = mount
  const read = (axis) => {
    const whole = event[`${axis}.range`]
    const [a, b] = whole ?? [event[`${axis}.range[0]`], event[`${axis}.range[1]`]]
    return a === undefined || b === undefined ? null : [a, b]
  }
  const [x, y] = [read("xaxis"), read("yaxis")]
  if (!x && !y) return
  const choice = {}
  if (x) choice.x = x.map(rule.meant)
  if (y) choice.y = mount.view.log ? y.map((v) => 10 ** v) : y
  change(mount, choice)
}

// By its buttons: a zoom about the middle, a pan by a third of what is in sight.
function move(mount, factor, shift) {
  const [a, b] = mount.view.x ?? mount.rule?.span ?? []
  if (a === undefined) return
  const [low, high] = mount.rule.span
  const middle = (a + b) / 2 + shift * (b - a)
  let half = ((b - a) / 2) * factor
  if (factor > 1 && 2 * half >= high - low) return change(mount, { x: null, y: null })
  half = Math.max(half, (high - low) * 1e-7)
  change(mount, { x: [middle - half, middle + half], y: null })
}

// Zoomed in, the server is asked for that range in more detail.
function refine(mount) {
  clearTimeout(mount.refining)
  const { view, curve: whole, rule } = mount
  if (!view.x || !whole?.level || !rule) {
    mount.detail = null
    return
  }
  const [a, b] = view.x
  const had = mount.detail
  const inside = had && had.axis === rule.axis && a >= had.from && b <= had.to
  const fine = had && (had.curve.level === 0 || had.to - had.from <= 6 * (b - a))
  const current = had && (had.rows === whole.rows || had.complete)
  if (inside && fine && current) return
  const wait = inside && fine ? 2000 : 150
  mount.refining = setTimeout(() => detail(mount, a, b), wait)
}

async function detail(mount, a, b) {
  const { rule, curve: whole } = mount
  const margin = b - a
  const [from, to] = [a - margin, b + margin]
  let [begin, end] = [from, to]
  if (rule.axis === "time") {
    const origin = whole.bins.time.find((t) => t !== null)
    ;[begin, end] = [origin + from * 1000, origin + to * 1000]
  }
  const x = rule.axis === "time" || rule.axis === "clock" ? "time" : rule.axis
  const query = `bins=${DETAIL_BINS}&x=${x}&begin=${Math.floor(begin)}&end=${Math.ceil(end)}`
  const asked = ++mount.asked
  const answer = await mount.feed.ask(query).catch(() => null)
  if (!answer || asked !== mount.asked || mount.stopped || !mount.view.x) return
  const found = curve(answer)
  const last = found.edge[found.edge.length - 1]
  const finer = found.level < mount.curve.level
  mount.detail = { axis: rule.axis, from, to, rows: whole.rows, complete: last < whole.rows, finer, curve: found }
  if (finer) schedule(mount)
}

async function picture(mount, format) {
  const Plotly = await plotly(mount.data.script)
  const { plot, look } = mount
  const data = plot.data.map((trace) => ({ ...trace, showlegend: Boolean(trace.name) && trace.hoverinfo !== "skip" }))
  const form = {
    ...plot.layout, paper_bgcolor: look.paper, plot_bgcolor: look.paper, showlegend: true, title: undefined,
    margin: { ...plot.layout.margin, t: 44 }, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
  }
  const url = await Plotly.toImage({ data, layout: form }, { format, width: 1100, height: 560, scale: format === "png" ? 2 : 1 })
  const link = document.createElement("a")
  link.href = url
  link.download = `job-${mount.data.job_id}-loss.${format}`
  link.click()
}

async function askMarks(mount) {
  clearTimeout(mount.marking)
  if (!document.hidden) {
    const answer = await fetch(`/api/training/marks/${mount.data.job_id}`).then((r) => (r.ok ? r.json() : null)).catch(() => null)
    if (mount.stopped) return
    if (answer && JSON.stringify(answer.marks) !== JSON.stringify(mount.marks)) {
      mount.marks = answer.marks
      schedule(mount)
    }
  }
  if (mount.data.live) mount.marking = setTimeout(() => askMarks(mount), MARKS_PACE)
}

function wire(mount) {
  const { root, view } = mount
  control(mount, "axis").onchange = (e) => change(mount, { axis: e.target.value, x: null, y: null })
  control(mount, "smoothing").oninput = (e) => change(mount, { smoothing: Number(e.target.value) }, { save: false })
  control(mount, "smoothing").onchange = () => keep(mount)
  control(mount, "log").onchange = (e) => change(mount, { log: e.target.checked, y: null })
  control(mount, "outliers").onchange = (e) => change(mount, { outliers: e.target.checked, y: null })
  control(mount, "follow").onclick = () => change(mount, view.x || view.y ? { x: null, y: null } : { x: mount.rule?.span ?? null })
  control(mount, "in").onclick = () => move(mount, 0.5, 0)
  control(mount, "out").onclick = () => move(mount, 2, 0)
  control(mount, "earlier").onclick = () => move(mount, 1, -1 / 3)
  control(mount, "later").onclick = () => move(mount, 1, 1 / 3)
  for (const format of ["png", "svg"]) {
    control(mount, format).onclick = () => picture(mount, format)
  }
  for (const link of root.querySelectorAll("a[data-format]")) {
    link.href = `/api/training/${mount.data.job_id}/download/metrics?format=${link.dataset.format}`
  }
  const menus = root.querySelectorAll("details")
  const close = (except) => menus.forEach((menu) => { if (menu !== except) menu.open = false })
  root.addEventListener("keydown", (e) => {
    const open = e.target.closest("details[open]")
    if (e.key !== "Escape" || !open) return
    open.open = false
    open.querySelector("summary").focus()
  })
  root.addEventListener("click", (e) => { if (e.target.closest("details div button, details div a")) close() })
  const { signal } = mount.ended
  document.addEventListener("pointerdown", (e) => close(e.target.closest?.("details")), { signal })
  // While the pointer is down the reader draws a box: nothing is drawn under it.
  mount.plot.addEventListener("pointerdown", () => { mount.held = true })
  for (const kind of ["pointerup", "pointercancel", "blur"]) {
    addEventListener(kind, () => {
      if (!mount.held) return
      mount.held = false
      schedule(mount)
    }, { signal })
  }
  root.addEventListener("pointermove", (e) => {
    const plot = e.target.closest?.(".signalbox-plot")
    mount.pointer = plot ? { plot, x: e.clientX, y: e.clientY } : null
  })
  root.addEventListener("pointerleave", () => { mount.pointer = null })
}

function begin(root, data) {
  const find = (name) => root.querySelector(`.signalbox-${name}`)
  const mount = {
    root, data, view: restored(data.job_id), curve: null, detail: null, marks: [], look: theme(root),
    plot: root.querySelector(".signalbox-main .signalbox-plot"), side: find("side"), legend: find("legend"), notice: find("notice"),
    trouble: find("trouble"), said: find("said"), spoken: find("unseen"), saidAt: -Infinity, spokenAt: -Infinity,
    panels: new Map(), seen: new Set(), choice: 0, asked: 0, ended: new AbortController(),
  }
  mount.observer = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const { width, height } = target._fullLayout ?? {}
      // A hidden tab has no width, and Plotly throws on it.
      if (!target.data || !target.offsetWidth || (target.offsetWidth === width && target.offsetHeight === height)) continue
      drawing(target, globalThis.Plotly.Plots.resize(target))
    }
  })
  mount.sight = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) {
        mount.seen.add(target)
        small(mount, target)
      } else mount.seen.delete(target)
    }
  }, { rootMargin: "60px" })
  wire(mount)
  controls(mount)
  keep(mount)
  mount.feed = feed(data.job_id, (curve, trouble) => {
    mount.trouble.textContent = trouble ?? ""
    if (!curve || (curve === mount.curve && !trouble)) return
    const first = !mount.curve
    const news = first || curve.rows !== mount.curve.rows || curve.live !== mount.curve.live || curve.level !== mount.curve.level
    if (curve.rows < (mount.curve?.rows ?? 0)) mount.detail = null // it was cut
    mount.curve = curve
    if (first) {
      draw(mount) // within the frame that shows the rest of it
      afterPaint(() => askMarks(mount))
    } else if (news || curve.indexed < 1) schedule(mount)
    if (mount.view.x) refine(mount)
  })
  return mount
}

export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".signalbox-curve")
  let mount = mounts.get(root)
  if (!mount) {
    mount = begin(root, data)
    mounts.set(root, mount)
  }
  if (mount.data.live && !data.live) {
    mount.feed.poll() // the last points
    mount.data = data
    askMarks(mount)
  }
  mount.data = data
  const look = theme(root)
  if (JSON.stringify({ ...look, bad: look.colors[1] }) !== JSON.stringify(mount.look)) schedule(mount)
  return () => {
    mount.stopped = true
    mount.ended.abort()
    mount.feed.stop()
    clearTimeout(mount.refining)
    clearTimeout(mount.marking)
    mount.observer.disconnect()
    mount.sight.disconnect()
    for (const plot of root.querySelectorAll(".signalbox-plot")) purge(plot)
    mounts.delete(root)
  }
}
