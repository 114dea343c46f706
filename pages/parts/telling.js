// Tells of each job that ends, on whatever page the reader is: a toast, the browser's title, and a
// notification where the reader asked for them. Strangers' texts only ever become text nodes.

const MARKS = { completed: "✓", failed: "✕", cancelled: "■" }
const ICONS = { completed: "check_circle", failed: "error", cancelled: "cancel" }
const KINDS = {
  timeout: "timed out", crashed: "crashed", gpu_out_of_memory: "ran out of GPU memory", lost: "was lost",
  host_out_of_memory: "ran out of memory", killed: "was killed", could_not_start: "could not start",
}
const MOST_TOASTS = 3
const TOAST_MS = 10_000
const WISH = "signalbox-notify"

const oneLine = (text, most) => {
  const plain = String(text).replace(/[\s\p{Cc}\p{Cf}]+/gu, " ").trim()
  return plain.length > most ? plain.slice(0, most - 1) + "…" : plain
}
const outcome = (job) => KINDS[job.failure_kind] ?? job.status
const headline = (job) => `Job ${job.job_id} ${oneLine(job.name, 60)} ${outcome(job)}`

function element(tag, className, text) {
  const made = document.createElement(tag)
  if (className) made.className = className
  if (text !== undefined) made.textContent = text
  return made
}

// As Streamlit's own icons are drawn: a ligature of the font that it has loaded.
function icon(name) {
  const made = element("span", "signalbox-icon", name)
  made.setAttribute("aria-hidden", "true")
  made.translate = false
  return made
}

// A plain click goes there without loading the page anew; any other is the browser's own. So is one
// on the list of jobs that leads to the list of jobs, where fields keep what was chosen in them.
function link(text, href, go) {
  const made = element("a", "", text)
  made.href = href
  made.addEventListener("click", (event) => {
    if (made.pathname === "/jobs" && location.pathname === "/jobs") return
    if (event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return
    event.preventDefault()
    go()
  })
  return made
}

// One per browser tab, whatever mounts and unmounts.
function teller() {
  const shared = (globalThis.__signalbox ??= {})
  return (shared.teller ??= { open: () => {}, look: null, running: 0, ended: null, base: null, set: null })
}

// The title

function setTitle() {
  const told = teller()
  const now = document.title
  if (now !== told.set) told.base = now // a page has set its own
  let words = told.base
  if (told.ended) words = `${told.ended} · ${told.base}`
  else if (told.running) words = `▶ ${told.running} running · ${told.base}`
  if (words !== now) document.title = told.set = words
  else told.set = now
}

function watchTitle() {
  const told = teller()
  if (told.watching) return
  told.watching = true
  toastBox() // a screen reader tells of what comes into a region that was there before
  new MutationObserver(setTitle).observe(document.head, { childList: true, subtree: true, characterData: true })
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return
    told.ended = null
    setTitle()
    for (const toast of document.querySelectorAll(".signalbox-toast")) leaveSoon(toast)
  })
}

// Toasts

function toastBox() {
  let box = document.querySelector(".signalbox-toasts")
  if (!box) {
    box = element("section", "signalbox-toasts")
    box.setAttribute("aria-label", "Jobs that have ended")
    box.setAttribute("aria-live", "polite")
    document.body.append(box)
  }
  // Streamlit keeps the theme on its own elements, and these lie outside of them.
  const style = teller().look ? getComputedStyle(teller().look) : null
  for (const name of style ? ["text-color", "gray-text-color", "background-color", "border-color", "link-color", "font",
    "green-color", "red-color", "gray-color", "base-radius"] : []) {
    box.style.setProperty(`--st-${name}`, style.getPropertyValue(`--st-${name}`))
  }
  return box
}

function leaveSoon(toast) {
  clearTimeout(toast.leaving)
  if (!document.hidden) toast.leaving = setTimeout(() => toast.remove(), TOAST_MS)
}

function show(icons, state, title, words, target) {
  const toast = element("div", `signalbox-toast ${state}`)
  const text = element("div")
  text.append(element("strong", "", title))
  if (words) text.append(element("p", "", words))
  text.append(link(target.label, target.href, () => {
    toast.remove()
    teller().open(target.go)
  }))
  const close = element("button")
  close.type = "button"
  close.setAttribute("aria-label", "Close")
  close.append(icon("close"))
  close.addEventListener("click", () => toast.remove())
  toast.append(icon(icons), text, close)
  for (const name of ["mouseenter", "focusin"]) toast.addEventListener(name, () => clearTimeout(toast.leaving))
  for (const name of ["mouseleave", "focusout"]) toast.addEventListener(name, () => leaveSoon(toast))
  const box = toastBox()
  box.append(toast)
  while (box.children.length > MOST_TOASTS) box.firstChild.remove()
  leaveSoon(toast)
}

function toast(job) {
  show(ICONS[job.status] ?? "info", job.status, headline(job), job.error ? oneLine(job.error, 160) : "", {
    label: `Open job ${job.job_id}`, href: `/job?id=${job.job_id}`, go: { job: job.job_id },
  })
}

function toastMany(number) {
  show("info", "many", `${number} more jobs have ended`, "", { label: "See all jobs", href: "/jobs", go: { jobs: null } })
}

// Notifications

function mayNotify() {
  try {
    return globalThis.Notification?.permission === "granted" && localStorage.getItem(WISH) === "yes"
  } catch {
    return false // a browser that keeps nothing
  }
}

function notify(title, body, tag, go) {
  if (!mayNotify() || (document.visibilityState === "visible" && document.hasFocus())) return
  try {
    const shown = new Notification(title, { body, tag }) // of several tabs with one tag one is seen
    shown.onclick = () => {
      window.focus()
      teller().open(go)
      shown.close()
    }
  } catch {
    // Some phones notify through service workers only; the title has told it.
  }
}

// Returns what to say to the reader; empty where all is well.
async function wish(wanted) {
  try {
    if (!wanted) localStorage.removeItem(WISH)
    else if (!globalThis.isSecureContext) return "Browsers notify only from https, or from this machine's own address."
    else if (!globalThis.Notification) return "This browser cannot notify."
    else if ((await Notification.requestPermission()) !== "granted")
      return "This browser refuses. Allow notifications for this address in its settings, then try again."
    else localStorage.setItem(WISH, "yes")
  } catch {
    return "This browser keeps no settings, so it cannot notify."
  }
  return ""
}

// The jobs that have ended since the last time, oldest first.
function tell(jobs, running) {
  const told = teller()
  told.running = running
  const last = jobs.at(-1)
  if (last) {
    const one = jobs.length === 1
    if (document.hidden) told.ended = one ? `${MARKS[last.status]} Job ${last.job_id} ${outcome(last)}` : `${jobs.length} jobs ended`
    const single = one ? jobs : jobs.slice(-(MOST_TOASTS - 1))
    if (jobs.length > MOST_TOASTS) toastMany(jobs.length - single.length)
    for (const job of jobs.length > MOST_TOASTS ? single : jobs) toast(job)
    if (jobs.length > MOST_TOASTS) notify(`${jobs.length} jobs have ended`, "", "signalbox-many", { jobs: null })
    else for (const job of jobs) notify(headline(job), job.error ? oneLine(job.error, 160) : "", `signalbox-${job.job_id}`, { job: job.job_id })
  }
  watchTitle()
  setTitle()
}
