// Draws the curves of several runs over each other. It fetches them itself; names, figures and
// parameters come from the page. What the reader chooses is in the address, which belongs to this
// script alone: the page is told what it needs to know by state values.
// `data`: {script, ids, wrong, metric, metrics, runs, columns, differing, same, summary, search, found, empty}

const PACE = 2000 // ms between two looks at the runs that live
const RAW = 8 // up to so many runs have their unsmoothed values behind them
const FEW = 30 // so many points of a line are told from what lies between them
const ALIGNED = { step: "step", epoch: "epoch", time: "since start" }

const mounts = new WeakMap()
let mounted = 0

// The reader's choices

function readView() {
  return {
    metric: readAddress("metric"),
    align: readAddress("align") in ALIGNED ? readAddress("align") : "step",
    group: readAddress("group"),
    band: readAddress("band") === "sd" ? "sd" : "range",
    smoothing: smoothingOf(readAddress("cs")),
    log: readAddress("cl") === "1",
    calm: readAddress("co") === "1",
    ...zoomOf(readAddress("cz")),
    hidden: new Set((readAddress("ch") ?? "").split(",").map(Number).filter(Number.isInteger)),
    find: readAddress("cf") ?? "",
  }
}

function keep(mount) {
  const { view } = mount
  writeAddress({
    metric: view.metric,
    align: view.align === "step" ? null : view.align,
    group: view.group,
    band: view.band === "sd" ? "sd" : null,
    cs: view.smoothing === SMOOTHING ? null : short(view.smoothing),
    cl: view.log ? "1" : null,
    co: view.calm ? "1" : null,
    cz: zoomText(view),
    ch: [...view.hidden].filter((id) => mount.data.ids.includes(id)).join(",") || null,
    cf: view.find || null,
  })
}

function change(mount, choice) {
  Object.assign(mount.view, choice)
  keep(mount)
  controls(mount)
  drawLegend(mount)
  drawTable(mount)
  schedule(mount)
}

function hide(mount, ids, hidden) {
  const all = new Set(mount.view.hidden)
  for (const id of ids) hidden ? all.add(id) : all.delete(id)
  change(mount, { hidden: all })
}

function pick(mount, ids) {
  mount.ids = ids
  writeAddress({ ids: ids.join(",") })
  mount.state("picked", ids.join(","))
}

// What is drawn: a name or a parameter that differs, as in `lr=0.1`, has the words of the filter.
function isFound(mount, id) {
  const words = mount.view.find.toLowerCase().split(/\s+/).filter(Boolean)
  return words.every((word) => mount.texts.get(id)?.includes(word))
}

const isShown = (mount, id) => !mount.view.hidden.has(id) && isFound(mount, id)

const metricOf = ({ view, data }) =>
  data.metrics.some((one) => one.name === view.metric) ? view.metric : data.metrics[0]?.name ?? null

function groupsOf({ view, data }) {
  return data.differing.find((one) => one.name === view.group)?.groups ?? null
}

// Curves

function store(mount) {
  const name = metricOf(mount)
  if (!mount.curves.has(name)) mount.curves.set(name, new Map())
  return mount.curves.get(name)
}

async function asked(url, signal) {
  const answer = await fetch(url, { signal })
  if (!answer.ok) throw new Error(String(answer.status))
  return answer.json()
}

async function load(mount) {
  const name = metricOf(mount)
  const { data } = mount
  if (!name || mount.asking || mount.stopped || !data.ids.length) return
  const known = store(mount)
  const bins = binsFor(data.ids.length)
  const wanted = data.runs.filter((run) => {
    const have = known.get(run.id)
    return !have || have.lived || have.indexed < 1 || run.live || have.asked < bins / 2 || have.asked > bins * 2
  })
  if (!wanted.length) return
  mount.asking = true
  try {
    const query = `job_ids=${wanted.map((run) => run.id)}&name=${encodeURIComponent(name)}&bins=${bins}`
    const url = `/api/training/curves?${query}`
    const { curves } = (await prefetched(url)) ?? (await asked(url, mount.ended.signal))
    const living = new Map(wanted.map((run) => [run.id, run.live]))
    for (const found of curves) {
      known.set(found.job_id, { ...curve(found), asked: bins, lived: living.get(found.job_id) })
    }
    mount.trouble = ""
  } catch (error) {
    if (mount.stopped) return
    mount.trouble = error.message === "404" ? "One of these jobs is not here any more. Reload the page." : "Connection lost, trying again."
  } finally {
    mount.asking = false
  }
  schedule(mount)
  // The figures beside the curves were taken while a long file was still being read.
  const behind = data.runs.filter((run) => !run.live && known.get(run.id)?.indexed === 1 && known.get(run.id).rows !== run.rows)
  if (behind.length) mount.state("read", behind.map((run) => `${run.id}:${known.get(run.id).rows}`).join())
  // What was chosen meanwhile, and what is still being read.
  const rest = data.runs.some((run) => !(store(mount).get(run.id)?.indexed === 1))
  clearTimeout(mount.soon)
  if (rest) mount.soon = setTimeout(() => load(mount), mount.trouble ? PACE : 300)
}

// Lines

function picture(mount) {
  const { data, view, look } = mount
  const name = metricOf(mount)
  const curves = store(mount)
  const smoothing = isPlain(name) ? 0 : view.smoothing
  const shown = data.runs.filter((run) => isShown(mount, run.id) && curves.has(run.id))
  const lines = new Map(
    shown.map((run) => [run.id, lineOf(curves.get(run.id), name, view.align, { smoothing, extreme: smoothing === 0 })]),
  )
  const longest = Math.max(0, ...[...lines.values()].map((line) => line.x.at(-1) ?? 0))
  const [, unit, label] = view.align === "time" ? UNITS.find(([from]) => longest >= from) : [0, 1, ALIGNED[view.align]]
  const drawn = (values) => (unit === 1 ? values : values.map((value) => value / unit))
  const groups = groupsOf(mount)
  const traces = []
  const heights = [] // the lines that the y axis is to hold
  if (groups) {
    groups.forEach((group, place) => {
      const members = group.ids.filter((id) => lines.get(id)?.x.length)
      if (!members.length) return
      const { color, dash } = lookOf(place, look.colors)
      const mean = blended(members.map((id) => lines.get(id)), view.band)
      const words = asText(`${view.group} ${group.label}`)
      const uid = `group-${place}`
      const shared = { type: "scatter", mode: "lines", x: drawn(mean.x), name: words, legendgroup: uid }
      if (members.length > 1) {
        const edge = { ...shared, line: { width: 0, color }, hoverinfo: "skip", showlegend: false }
        traces.push({ ...edge, y: mean.low, uid: `low-${place}` })
        traces.push({ ...edge, y: mean.high, fill: "tonexty", fillcolor: transparent(color), uid: `band-${place}` })
      }
      const said = members.length > 1 ? `, mean of ${members.length} runs` : ""
      const where = { step: "at step %{x:,.0f}", epoch: "at epoch %{x:.4~g}", time: `at %{x:.4~g} ${label}` }[view.align]
      traces.push({
        ...shared, mode: mean.x.length < FEW ? "lines+markers" : "lines", y: mean.y, uid,
        line: { color, width: 2.4, dash: dashText(dash) }, marker: { color, size: 5 },
        hovertemplate: `%{y:.5~g} ${where}${said}<extra>${words}</extra>`,
      })
      heights.push({ x: mean.x, y: mean.low }, { x: mean.x, y: mean.high })
    })
  } else {
    const faint = smoothing > 0 && shown.length <= RAW
    for (const run of shown) {
      const { color, dash } = lookOf(mount.slots.get(run.id), look.colors)
      const line = lines.get(run.id)
      const words = asText(titleOf(run))
      if (faint) {
        const raw = lineOf(curves.get(run.id), name, view.align, { smoothing: 0, extreme: true })
        traces.push({
          type: "scatter", mode: "lines", x: drawn(raw.x), y: raw.y, uid: `raw-${run.id}`, opacity: 0.22, name: words,
          line: { color, width: 1 }, hoverinfo: "skip", showlegend: false, connectgaps: false,
        })
        heights.push(raw)
      } else heights.push(line)
      traces.push({
        type: "scatter", mode: line.x.length < FEW ? "lines+markers" : "lines", x: drawn(line.x), y: line.y, customdata: line.steps, name: words,
        uid: `run-${run.id}`, line: { color, width: 1.8, dash: dashText(dash) }, marker: { color, size: 5 }, connectgaps: false,
        hovertemplate: `%{y:.5~g} at step %{customdata:,d}<extra>${words}</extra>`,
      })
    }
  }
  return { traces, heights, unit, label: view.align === "time" ? `${label} ${ALIGNED.time}` : label, name }
}

const dashText = (dash) => (dash.length ? dash.map((length) => `${length}px`).join(",") : "solid")

const transparent = (color) => (/^#[0-9a-f]{6}$/i.test(color) ? `${color}2b` : color)

function layoutOf(mount, { heights, unit, label, name }) {
  const { look, view } = mount
  const ends = heights.flatMap((line) => (line.x.length ? [line.x[0], line.x.at(-1)] : []))
  const across = view.x ?? extent(ends, { margin: 0.015 }) ?? [0, 1]
  const seen = []
  for (const { x, y } of heights) for (let n = 0; n < x.length; n += 1) if (x[n] >= across[0] && x[n] <= across[1]) seen.push(y[n])
  let up = view.y && !(view.log && view.y[0] <= 0) ? view.y : null
  up ??= extent(seen, { outliers: !view.calm, log: view.log }) ?? [view.log ? 0.1 : 0, 1]
  const axis = {
    gridcolor: look.line, linecolor: look.line, zeroline: false, ticks: "", autorange: false, tickfont: { color: look.quiet },
  }
  const words = (text) => ({ text, standoff: 8, font: { color: look.quiet } })
  return {
    autosize: true, hovermode: "closest", hoverdistance: 30, showlegend: false, dragmode: touch() ? false : "zoom",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: look.font, color: look.text, size: 12 },
    margin: { l: 54, r: 12, t: 8, b: 42 },
    hoverlabel: { bgcolor: look.paper, bordercolor: look.line, font: { color: look.text }, namelength: 48 },
    xaxis: { ...axis, range: across.map((value) => value / unit), title: words(label), hoverformat: ".4~g" },
    yaxis: {
      ...axis, range: view.log ? up.map(Math.log10) : up, type: view.log ? "log" : "linear", exponentformat: "power",
      dtick: view.log && up[1] / up[0] > 30 ? 1 : undefined,
    },
    meta: name,
  }
}

function schedule(mount) {
  if (mount.frame || mount.stopped) return
  mount.frame = requestAnimationFrame(() => {
    mount.frame = 0
    if (!mount.held) draw(mount) // else once the pointer is let go
  })
}

function draw(mount) {
  const { data, plot, notice } = mount
  const Plotly = globalThis.Plotly
  if (mount.stopped || !mount.plot.offsetWidth) return // Plotly throws on a plot without a width
  const known = store(mount)
  const arrived = data.runs.filter((run) => known.has(run.id))
  const some = arrived.some((run) => known.get(run.id).series[metricOf(mount)])
  notice.textContent = noticeOf(mount, arrived, some)
  notice.classList.toggle("over", some)
  mount.box.classList.toggle("waiting", data.runs.length > 0 && data.metrics.length > 0 && !some && !notice.textContent)
  if (!arrived.length) return
  const shown = picture(mount)
  mount.unit = shown.unit
  const form = layoutOf(mount, shown)
  if (!Plotly || !mount.painted) {
    if (!plot.data) sketch(plot, shown.traces, form)
    if (!mount.painted) takeOver(mount, plotted)
    return
  }
  drawing(plot, Plotly.react(plot, shown.traces, form, CONFIG))
  unsketch(plot)
  mount.shown = shown
  mount.drawn = arrived.length
  plot.dataset.drawn = String(arrived.length)
  if (!mount.listening) listenToPlot(mount)
  light(mount, mount.lit)
}

function plotted(mount, problem) {
  if (problem) mount.trouble = problem
  schedule(mount)
}

function noticeOf(mount, arrived, some) {
  const { data, trouble } = mount
  if (!data.runs.length) return data.empty
  if (trouble) return trouble
  if (!data.metrics.length) return "None of these jobs has logged a point yet. The curves appear here with the first one."
  const reading = arrived.filter((run) => store(mount).get(run.id).indexed < 1).length
  if (reading) return `Still reading ${reading} of ${data.runs.length} long curves.`
  const shown = data.runs.filter((run) => isShown(mount, run.id))
  if (!shown.length) return "All runs are hidden, or none fits the filter."
  if (some && mount.view.align !== "step" && shown.every((run) => arrived.includes(run) && !scale(store(mount).get(run.id), mount.view.align)))
    return `These runs do not log their ${mount.view.align === "time" ? "times" : "epochs"}: choose Step.`
  return ""
}

// Pointing at a line, at its place in the list or at its row in the table lights all three.

function light(mount, id) {
  mount.lit = id
  const { root, plot } = mount
  for (const element of root.querySelectorAll(".lit")) element.classList.remove("lit")
  const groups = groupsOf(mount)
  const place = groups?.findIndex((group) => group.ids.includes(id))
  const traces = id === null ? [] : groups ? ["group-", "band-"].map((kind) => kind + place) : [`run-${id}`, `raw-${id}`]
  const lines = traces.flatMap((uid) => [...plot.querySelectorAll(`.scatterlayer .trace${CSS.escape(uid)}`)])
  plot.classList.toggle("dimmed", lines.length > 0)
  for (const line of lines) line.classList.add("lit")
  if (id !== null) for (const element of root.querySelectorAll(`[data-run="${id}"]`)) element.classList.add("lit")
}

function listenToPlot(mount) {
  mount.listening = true
  const { plot } = mount
  plot.on("plotly_hover", ({ points }) => {
    const uid = points[0]?.data.uid ?? ""
    if (uid.startsWith("run-")) light(mount, Number(uid.slice(4)))
    else if (uid.startsWith("group-")) light(mount, groupsOf(mount)?.[Number(uid.slice(6))]?.ids[0] ?? null)
  })
  plot.on("plotly_unhover", () => light(mount, null))
  plot.on("plotly_doubleclick", () => change(mount, { x: null, y: null }))
  plot.on("plotly_relayout", (event) => {
    const read = (axis) => {
      const [a, b] = event[`${axis}.range`] ?? [event[`${axis}.range[0]`], event[`${axis}.range[1]`]]
      return pair(Math.min(a, b), Math.max(a, b))
    }
    const [x, y] = [read("xaxis"), read("yaxis")]
    if (!x && !y) return
    const raised = y && mount.view.log ? y.map((value) => 10 ** value) : y
    change(mount, { ...(x ? { x: x.map((value) => value * mount.unit) } : {}), ...(raised ? { y: raised } : {}) })
  })
}

// Controls

const control = (mount, name) => mount.root.querySelector(`[data-is="${name}"]`)

function options(select, entries, chosen) {
  const signature = JSON.stringify(entries)
  if (select.dataset.signature !== signature) {
    select.dataset.signature = signature
    select.replaceChildren(...entries.map(([value, textContent]) => make("option", { value, textContent })))
  }
  select.value = chosen
}

function controls(mount) {
  const { view, data } = mount
  const all = data.runs.length
  const some = (one) => (one.jobs < all ? ` (${one.jobs} of ${all})` : "")
  options(control(mount, "metric"), data.metrics.map((one) => [one.name, one.title + some(one)]), metricOf(mount) ?? "")
  const each = (one) => (one.groups.length < all ? "" : " (one job each)")
  options(control(mount, "group"), [["", "nothing"], ...data.differing.map((one) => [one.name, one.name + each(one)])], groupsOf(mount) ? view.group : "")
  control(mount, "band").value = view.band
  control(mount, "band-label").classList.toggle("off", !groupsOf(mount))
  control(mount, "band").disabled = !groupsOf(mount)
  for (const radio of control(mount, "align").querySelectorAll("input")) radio.checked = radio.value === view.align
  const smooth = control(mount, "smooth")
  smooth.value = String(view.smoothing)
  smooth.nextElementSibling.textContent = view.smoothing.toFixed(2)
  control(mount, "log").checked = view.log
  control(mount, "calm").checked = view.calm
  control(mount, "whole").disabled = !view.x && !view.y
  if (document.activeElement !== control(mount, "find")) control(mount, "find").value = view.find
}

function listen(mount) {
  const on = (name, event, act) => (control(mount, name)[event] = act)
  const everything = { x: null, y: null }
  on("metric", "onchange", (event) => {
    change(mount, { metric: event.target.value, ...everything })
    mount.state("metric", mount.view.metric)
    load(mount)
  })
  on("group", "onchange", (event) => change(mount, { group: event.target.value || null, y: null }))
  on("band", "onchange", (event) => change(mount, { band: event.target.value }))
  for (const radio of control(mount, "align").querySelectorAll("input")) {
    radio.name = `${mount.id}-align`
    radio.onchange = () => change(mount, { align: radio.value, ...everything })
  }
  on("smooth", "oninput", (event) => change(mount, { smoothing: Number(event.target.value) }))
  on("log", "onchange", (event) => change(mount, { log: event.target.checked, y: null }))
  on("calm", "onchange", (event) => change(mount, { calm: event.target.checked, y: null }))
  on("whole", "onclick", () => change(mount, everything))
  on("find", "oninput", (event) => change(mount, { find: event.target.value.trim() }))
  const found = () => mount.data.ids.filter((id) => isFound(mount, id))
  on("all", "onclick", () => hide(mount, found(), false))
  on("none", "onclick", () => hide(mount, found(), true))
  on("png", "onclick", () => download(mount, "png"))
  on("svg", "onclick", () => download(mount, "svg"))
  on("csv", "onclick", () => save(new Blob([csvText(mount)], { type: "text/csv" }), "comparison.csv"))
  const point = (event) => {
    const run = event.target.closest?.("[data-run]")?.dataset.run
    light(mount, run ? Number(run) : null)
  }
  for (const place of [mount.legend, mount.section]) {
    place.onpointerover = place.onfocusin = point
    place.onpointerleave = () => light(mount, null)
  }
  // While a zoom is being drawn a new picture would break it off.
  mount.plot.addEventListener("pointerdown", () => {
    mount.held = true
    const release = () => {
      mount.held = false
      schedule(mount)
    }
    addEventListener("pointerup", release, { once: true })
  })
  listenToSearch(mount)
}

function save(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name })
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000)
}

// A picture that leaves the page says itself what is what: it has a legend, a title and a background.
function download(mount, format) {
  if (!mount.shown) return
  const { look, shown } = mount
  const layout = layoutOf(mount, shown)
  const metric = mount.data.metrics.find((one) => one.name === shown.name)?.title ?? ""
  globalThis.Plotly.downloadImage(
    { data: shown.traces, layout: { ...layout, paper_bgcolor: look.paper, plot_bgcolor: look.paper, showlegend: true, title: { text: asText(metric), font: { size: 14 } }, margin: { l: 60, r: 20, t: 48, b: 48 } }, config: CONFIG },
    { format, filename: `compare-${shown.name}`, width: 1200, height: 640, scale: format === "png" ? 2 : 1 },
  )
}

// Mounting

function begin(root) {
  const find = (query) => root.querySelector(query)
  const mount = {
    root, id: `signalbox-compare-${(mounted += 1)}`, view: readView(), curves: new Map(), slots: new Map(), told: new Map([["search", null]]), toldAt: 0, ended: new AbortController(),
    box: find(".picture"), plot: find(".plot"), notice: find(".notice"), legend: find(".legend"), tally: find(".tally"),
    search: find('[data-is="search"]'), found: find(".adder ul"), section: find("section"), summary: find(".summary"), lit: null,
  }
  mount.observer = new ResizeObserver(() => {
    if (mount.plot.offsetWidth && mount.plot.data) drawing(mount.plot, globalThis.Plotly.Plots.resize(mount.plot))
    else schedule(mount)
  })
  mount.observer.observe(mount.plot)
  mount.timer = setInterval(() => document.hidden || load(mount), PACE)
  listen(mount)
  mount.found.id = `${mount.id}-found`
  mount.search.setAttribute("aria-controls", mount.found.id)
  return mount
}

export default function ({ data, parentElement, setStateValue, setTriggerValue }) {
  const root = parentElement.querySelector(".signalbox-compare")
  let mount = mounts.get(root)
  const look = theme(root)
  if (!mount) mounts.set(root, (mount = begin(root)))
  mount.state = (name, value) => {
    if (mount.told.get(name) === value) return
    mount.told.set(name, value)
    mount.toldAt = performance.now()
    setStateValue(name, value)
  }
  // What was told while the page was being run anew may not have been heard.
  if (performance.now() - mount.toldAt > 1500) {
    for (const name of ["picked", "search"]) {
      if ((mount.told.get(name) ?? null) === data[name]) continue
      mount.toldAt = performance.now()
      setStateValue(name, mount.told.get(name) ?? null)
    }
  }
  mount.trigger = setTriggerValue
  mount.look = look
  const before = mount.data?.ids.join()
  mount.data = data
  if ((mount.told.get("picked") ?? null) === data.picked) mount.ids = data.ids // else the answer is to come
  mount.slots = slotsOf(data.ids, mount.slots)
  mount.texts = new Map(
    data.runs.map((run, place) => [
      run.id, [titleOf(run), run.state, ...data.differing.map((one) => `${one.name}=${valueText(one.values[place])}`)].join(" ").toLowerCase(),
    ]),
  )
  const metric = metricOf(mount)
  if (metric !== data.metric) mount.state("metric", metric)
  mount.summary.textContent = data.summary
  mount.plot.setAttribute("role", "img")
  mount.plot.setAttribute("aria-label", data.summary || data.empty)
  controls(mount)
  drawLegend(mount)
  drawTable(mount)
  drawFound(mount)
  if (before !== data.ids.join()) load(mount)
  else if (!store(mount).size) load(mount)
  schedule(mount)
  return () => {
    mount.stopped = true
    mount.ended.abort()
    mount.observer.disconnect()
    clearInterval(mount.timer)
    clearTimeout(mount.soon)
    purge(mount.plot)
    mounts.delete(root)
  }
}
