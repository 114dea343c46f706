// The list of runs beside the chart, in which each can be hidden and removed, and the box that adds one.

function make(tag, properties = {}, ...children) {
  const { data, ...others } = properties
  const element = Object.assign(document.createElement(tag), others)
  Object.assign(element.dataset, data)
  element.append(...children)
  return element
}

const icon = (name) => {
  const element = make("i", { textContent: name })
  element.setAttribute("aria-hidden", "true")
  return element
}

function swatch({ color, dash }) {
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg")
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line")
  const set = (element, values) => Object.entries(values).forEach(([name, value]) => element.setAttribute(name, value))
  set(drawing, { width: 30, height: 10, class: "swatch", "aria-hidden": "true" })
  set(line, { x1: 0, x2: 30, y1: 5, y2: 5, stroke: color, "stroke-width": 2.4, "stroke-dasharray": dash.join(" ") })
  drawing.append(line)
  return drawing
}

// Opens the job in the running app; with a modifier key it is a link like any other.
function jobLink(mount, run) {
  const link = make("a", { href: `/job?id=${run.id}`, textContent: titleOf(run), title: titleOf(run) })
  link.onclick = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return
    event.preventDefault()
    mount.trigger("open", run.id)
  }
  return link
}

const titleOf = (run) => `${run.id} · ${run.name}`

function lamp(run) {
  const element = make("span", { className: "lamp" }, icon(run.icon), run.state)
  element.style.color = `var(--st-${run.color}-text-color)`
  return element
}

function remover(mount, run) {
  const button = make("button", { type: "button", className: "remove", title: "Remove from the comparison" }, icon("close"))
  button.setAttribute("aria-label", `Remove job ${run.id} from the comparison`)
  button.onclick = () => pick(mount, mount.ids.filter((id) => id !== run.id))
  return button
}

function drawLegend(mount) {
  const { data, legend, look, view } = mount
  const shown = data.runs.filter((run) => isShown(mount, run.id)).length
  mount.tally.textContent = data.runs.length ? `${shown} of ${data.runs.length} shown` : ""
  const groups = groupsOf(mount)
  const signature = JSON.stringify([data.runs, groups, [...view.hidden], view.find, look.colors, [...mount.slots]])
  if (legend.dataset.signature === signature) return
  legend.dataset.signature = signature
  const focused = legend.contains(document.activeElement) ? document.activeElement.dataset.at : null
  const byId = new Map(data.runs.map((run) => [run.id, run]))
  const entry = (run) => {
    const line = groups ? [] : [swatch(lookOf(mount.slots.get(run.id), look.colors))]
    const box = checkbox(`run-${run.id}`, !view.hidden.has(run.id), (on) => hide(mount, [run.id], !on))
    const item = make("li", { data: { run: run.id } }, make("label", {}, box, ...line, make("span", { textContent: titleOf(run), title: titleOf(run) })), remover(mount, run))
    item.classList.toggle("away", !isShown(mount, run.id))
    item.hidden = !isFound(mount, run.id)
    return item
  }
  if (!groups) {
    legend.replaceChildren(...data.runs.map(entry))
  } else {
    legend.replaceChildren(
      ...groups.map((group, place) => {
        const on = group.ids.filter((id) => !view.hidden.has(id)).length
        const box = checkbox(`group-${place}`, on > 0, (show) => hide(mount, group.ids, !show))
        box.indeterminate = on > 0 && on < group.ids.length
        const words = `${view.group} ${group.label}`
        const head = make("label", { title: words }, box, swatch(lookOf(place, look.colors)), make("span", { textContent: words }))
        const item = make("li", { className: "group", data: { group: place } }, head, make("ul", {}, ...group.ids.map((id) => entry(byId.get(id)))))
        item.hidden = !group.ids.some((id) => isFound(mount, id))
        return item
      }),
    )
  }
  if (focused) legend.querySelector(`[data-at="${CSS.escape(focused)}"]`)?.focus()
}

function checkbox(at, checked, changed) {
  const box = make("input", { type: "checkbox", checked, data: { at } })
  box.onchange = () => changed(box.checked)
  return box
}

// The box that adds a job. What it finds comes with the next `data`, from the server.
function drawFound(mount) {
  const { search, found, data } = mount
  const open = document.activeElement === search && mount.opened
  found.hidden = !open
  search.setAttribute("aria-expanded", String(open))
  if (!open) return
  // A run of the page that began before the last letter may still come.
  if (data.search === search.value.trim()) Object.assign(mount, { entries: data.found, foundFor: data.search })
  const entries = mount.entries ?? []
  mount.at = Math.max(0, Math.min(mount.at ?? 0, entries.length - 1))
  found.replaceChildren(
    ...entries.map((job, place) => {
      const option = make("li", { id: `${mount.id}-${place}`, role: "option" }, make("span", { textContent: titleOf(job) }), make("small", { textContent: job.about }))
      option.setAttribute("aria-selected", String(place === mount.at))
      option.onpointerdown = (event) => {
        event.preventDefault() // the box keeps the focus
        add(mount, job.id)
      }
      return option
    }),
  )
  const isDone = mount.foundFor === search.value.trim()
  if (!entries.length) found.append(make("li", { className: "none", textContent: isDone ? "No other job fits." : "Looking…" }))
  search.setAttribute("aria-activedescendant", entries.length ? `${mount.id}-${mount.at}` : "")
}

function add(mount, id) {
  Object.assign(mount, { at: 0, entries: [], foundFor: null })
  mount.search.value = ""
  pick(mount, [...mount.ids.filter((one) => one !== id), id])
  mount.state("search", "")
}

function listenToSearch(mount) {
  const { search } = mount
  let waiting
  const ask = () => {
    mount.opened = true
    mount.at = 0
    clearTimeout(waiting)
    waiting = setTimeout(() => mount.state("search", search.value.trim()), 120)
    drawFound(mount)
  }
  search.onfocus = search.onclick = () => mount.opened || ask()
  search.oninput = ask
  search.onblur = () => {
    clearTimeout(waiting)
    mount.opened = false
    drawFound(mount)
    mount.state("search", null)
  }
  search.onkeydown = (event) => {
    const entries = mount.entries ?? []
    if (event.key === "Escape") {
      mount.opened = false
      search.value = ""
    } else if (event.key === "ArrowDown" && !mount.opened) {
      ask()
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const step = event.key === "ArrowDown" ? 1 : entries.length - 1
      mount.at = ((mount.at ?? 0) + step) % Math.max(1, entries.length)
    } else if (event.key === "Enter" && mount.opened && entries[mount.at] && mount.foundFor === search.value.trim()) {
      add(mount, entries[mount.at].id)
    } else {
      return
    }
    event.preventDefault()
    drawFound(mount)
  }
}
