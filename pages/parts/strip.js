// The strip in the sidebar: what runs and waits, and how full the machine is. It asks the server
// itself, so that an open tab costs one small request every two seconds and no run of a script.
// `data`: {devices: [{index, name}]}, which are as many rows as there will be.

const LOOK_MS = 2000
const SELDOM_LOOK_MS = 5000
const PATIENCE_MS = 10_000

function size(bytes) {
  let rest = bytes
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (rest < 1023.95) return `${unit === "B" ? rest : rest < 99.95 ? rest.toFixed(1) : Math.round(rest)} ${unit}`
    rest /= 1024
  }
  return `${rest.toFixed(1)} TiB`
}

function ofTotal(used, total) {
  const [whole, unit] = size(total).split(" ")
  const scale = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].indexOf(unit)
  return used === null ? `– of ${whole} ${unit}` : `${(used / scale).toFixed(1)} of ${whole} ${unit}`
}

const percent = (value) => (value === null ? "–" : `${Math.round(value)} %`)

// A row has its place and its height before its first figure.
function row(name, bars) {
  const made = element("div", "signalbox-row")
  const words = element("div")
  const figure = element("span", "", "–")
  words.append(element("span", "", name), figure)
  made.append(words)
  const fills = []
  for (let n = 0; n < bars; n++) {
    const bar = element("div", "signalbox-bar")
    fills.push(element("i"))
    bar.append(fills[n])
    made.append(bar)
  }
  return { made, set(text, shares, title) {
    if (figure.textContent !== text) figure.textContent = text
    if (made.title !== title) made.title = title
    shares.forEach((share, n) => { fills[n].style.width = `${100 * Math.min(1, Math.max(0, share ?? 0))}%` })
  } }
}

function count(state, name, go) {
  const made = link("", `/jobs?state=${state}`, () => go({ jobs: state }))
  const words = element("span", "", `– ${state}`)
  made.append(icon(name), words)
  return { made, set(number) {
    const text = `${number} ${state}`
    if (words.textContent !== text) words.textContent = text
    made.classList.toggle("signalbox-some", state === "running" && number > 0)
  } }
}

function build(root, devices) {
  const go = (target) => teller().open(target)
  const heads = element("div", "signalbox-counts")
  const running = count("running", "play_arrow", go)
  const queued = count("queued", "schedule", go)
  heads.append(running.made, queued.made)
  const cpu = row("CPU", 1)
  const memory = row("Memory", 1)
  const gpus = devices.map((device) => row(`GPU ${device.index}`, 2))
  const disk = row("Disk", 1)
  root.append(heads, ...[cpu, memory, ...gpus, disk].map((each) => each.made), wishSwitch())
  return (now) => {
    const load = now.load
    running.set(now.running)
    queued.set(now.queued)
    cpu.set(percent(load.cpu_percent), [load.cpu_percent / 100], `All ${load.cores} cores together`)
    memory.set(ofTotal(load.memory_used_bytes, load.memory_total_bytes), [load.memory_used_bytes / load.memory_total_bytes],
      "Memory of the machine, whoever uses it")
    load.devices.forEach((device, n) => {
      const busy = device.percent === null ? "" : `${percent(device.percent)} · `
      gpus[n]?.set(busy + ofTotal(device.used_bytes, device.total_bytes),
        [device.percent / 100, device.used_bytes / device.total_bytes], `${device.name}: at work, and memory in use`)
    })
    const left = load.disk_free_bytes
    disk.set(left === null ? "–" : `${size(left)} left${load.disk_is_low ? ": little" : ""}`,
      [left === null ? 0 : 1 - left / load.disk_total_bytes], "Where the data folder is")
    disk.made.classList.toggle("signalbox-low", load.disk_is_low)
  }
}

function wishSwitch() {
  const part = element("div", "signalbox-wish")
  const button = element("button")
  button.type = "button"
  button.setAttribute("role", "switch")
  button.append(element("i"), element("span", "", "Notify me in this browser"))
  const said = element("p")
  said.setAttribute("role", "status")
  const draw = () => button.setAttribute("aria-checked", String(mayNotify()))
  button.addEventListener("click", async () => {
    said.textContent = await wish(!mayNotify())
    draw()
  })
  draw()
  part.append(button, said)
  return part
}

// Browsers slow the timers of a hidden page down to one a minute, but not those of a worker.
function everySecond(call) {
  try {
    const url = URL.createObjectURL(new Blob(["setInterval(() => postMessage(0), 1000)"], { type: "text/javascript" }))
    const worker = new Worker(url)
    worker.onmessage = call
    return () => {
      worker.terminate()
      URL.revokeObjectURL(url)
    }
  } catch {
    const timer = setInterval(call, 1000)
    return () => clearInterval(timer)
  }
}

function follow(root, draw) {
  const told = teller()
  let asked = -Infinity
  let asking = false
  let wrong = ""
  const said = element("p", "signalbox-wrong")
  said.setAttribute("role", "status")
  root.append(said)
  async function ask() {
    const after = told.after === undefined ? "" : `?ended_after=${told.after}`
    const answer = await fetch(`/api/machine${after}`, { signal: AbortSignal.timeout(PATIENCE_MS) })
    const found = await answer.json()
    wrong = answer.ok ? "" : String(found.detail)
    return answer.ok ? found : null
  }
  async function look() {
    const seldom = document.hidden || wrong
    if (asking || performance.now() - asked < (seldom ? SELDOM_LOOK_MS : LOOK_MS) - 100) return
    asking = true
    asked = performance.now()
    try {
      const now = await ask()
      if (now) {
        told.after = now.last_ending
        draw(now)
        tell(now.endings, now.running)
      }
    } catch {
      wrong = "The server does not answer; these are its last figures."
    }
    root.classList.toggle("signalbox-stale", Boolean(wrong))
    if (said.textContent !== wrong) said.textContent = wrong
    asking = false
  }
  look()
  return everySecond(look)
}

const strips = new WeakMap()

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".signalbox-strip")
  const told = teller()
  told.open = (target) => setTriggerValue("go", target)
  told.look = root
  if (!strips.has(root)) {
    root.replaceChildren()
    strips.set(root, follow(root, build(root, data.devices)))
  }
  return () => {
    strips.get(root)?.()
    strips.delete(root)
  }
}
