const TYPED_IN = "input, textarea, select, [contenteditable], [role=textbox], [role=combobox]"
const NEXT_MILLISECONDS = 1500
const PAGE_MILLISECONDS = 15000
const TICK_MILLISECONDS = 5000

const isShown = (element) =>
  element.checkVisibility({ visibilityProperty: true }) && !element.closest("[inert]")

const searchField = () =>
  [...document.querySelectorAll("input")].find((input) => {
    const label = input.ariaLabel || input.labels?.[0]?.textContent || ""
    return label.trim() === "Search" && isShown(input)
  })

function goTo(address) {
  const path = `/${address}`
  const links = document.querySelectorAll('[data-testid="stSidebarNavLink"]')
  const link = [...links].find((a) => new URL(a.href).pathname === path)
  if (link) link.click()
  else location.assign(path) // the sidebar is folded away
}

function search() {
  const until = performance.now() + PAGE_MILLISECONDS
  const look = () => {
    const field = searchField()
    if (field) {
      field.focus()
      field.select()
    } else if (performance.now() < until) {
      requestAnimationFrame(look)
    }
  }
  if (!searchField()) goTo("jobs")
  look()
}

function cancel() {
  const buttons = document.querySelectorAll('[class*="st-key-cancel-job-"] button')
  const shown = [...buttons].filter((button) => !button.disabled && isShown(button))
  if (shown.length === 1) shown[0].click()
}

export default function ({ parentElement, data }) {
  const dialog = parentElement.querySelector("dialog")
  const shared = (globalThis.__signalbox ??= {})
  shared.keys?.abort() // one listener, however often Streamlit draws this anew
  const here = (shared.keys = new AbortController())
  let goUntil = 0

  const press = (event) => {
    const goes = event.timeStamp < goUntil
    goUntil = 0
    const typing = event.composedPath().some((e) => e instanceof Element && e.matches(TYPED_IN))
    if (typing || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return
    if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return
    if (goes && event.key in data) goTo(data[event.key])
    else if (goes) return // what was to be a page's letter does nothing else
    else if (event.key === "g") goUntil = event.timeStamp + NEXT_MILLISECONDS
    else if (event.key === "/") search()
    else if (event.key === "c") cancel()
    else if (event.key === "?") dialog.showModal()
    else return
    event.preventDefault()
  }
  const click = (event) => {
    if (event.target === dialog) dialog.close() // beside it
    else if (event.target.closest?.(".box-keys-button")) dialog.showModal()
    else if (event.target.closest?.(".box-copy")) copyText(event.target.closest(".box-copy"))
  }
  document.addEventListener("keydown", press, { signal: here.signal })
  document.addEventListener("click", click, { signal: here.signal })
  const ticking = setInterval(keepTimesTrue, TICK_MILLISECONDS)
  here.signal.addEventListener("abort", () => clearInterval(ticking))
  return () => here.abort()
}
