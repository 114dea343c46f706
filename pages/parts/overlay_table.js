// The table of the comparison: a row for each run, a column for each figure and each parameter that
// differs. Rows keep their places while figures change: they are sorted only when a heading is pressed.

function cellText(column, position) {
  const value = column.values[position]
  if (value == null) return "–"
  if (column.kind === "seconds") return duration(value)
  if (column.kind === "count") return count(value)
  if (column.kind === "figure") return figure(value)
  return valueText(value)
}

// Parameters show as they were given; true and 1 are told apart.
const valueText = (value) => (value == null ? "–" : String(value))

function sortKey(value) {
  if (value == null) return [2, 0]
  return typeof value === "number" ? [0, value] : [1, String(value)]
}

function sortedIds(mount) {
  const { data, sort } = mount
  const ids = data.runs.map((run) => run.id)
  const column = sort && columnsOf(data).find((candidate) => candidate.title === sort.title)
  if (!column) return ids
  const keys = new Map(ids.map((id, position) => [id, sortKey(column.values[position])]))
  return ids.sort((one, other) => {
    const [a, b] = [keys.get(one), keys.get(other)]
    if (a[0] !== b[0]) return a[0] - b[0] // what is missing comes last, whichever way
    const order = a[1] < b[1] ? -1 : a[1] > b[1] ? 1 : 0
    return sort.descending ? -order : order
  })
}

const columnsOf = (data) => [
  { title: "Run", kind: "run", values: data.runs.map((run) => run.id), notes: [], best: [] },
  ...data.columns,
  ...data.differing.map((one) => ({ title: one.name, kind: "parameter", values: one.values, notes: [], best: [] })),
]

function drawTable(mount) {
  const { data, section } = mount
  section.hidden = !data.runs.length
  if (section.hidden) return
  const columns = columnsOf(data)
  const known = data.runs.map((run) => run.id).sort().join()
  if (mount.known !== known) {
    mount.known = known
    mount.order = sortedIds(mount)
  }
  drawHead(mount, columns)
  const body = section.querySelector("tbody")
  const rows = new Map([...body.children].map((row) => [Number(row.dataset.run), row]))
  const places = new Map(data.runs.map((run, position) => [run.id, position]))
  mount.order.forEach((id, place) => {
    const row = rows.get(id) ?? make("tr", { data: { run: id } })
    rows.delete(id)
    if (body.children[place] !== row) body.insertBefore(row, body.children[place] ?? null)
    drawRow(mount, row, data.runs[places.get(id)], columns, places.get(id))
  })
  for (const row of rows.values()) row.remove()
  drawSame(mount)
}

function drawHead(mount, columns) {
  const head = mount.section.querySelector("thead tr")
  const signature = JSON.stringify([columns.map((column) => column.title), mount.sort ?? null])
  if (head.dataset.signature === signature) return
  head.dataset.signature = signature
  const focused = [...head.children].findIndex((cell) => cell.contains(document.activeElement))
  head.replaceChildren(
    ...columns.map((column) => {
      const mine = mount.sort?.title === column.title
      const cell = make("th", { scope: "col", className: column.kind })
      cell.setAttribute("aria-sort", mine ? (mount.sort.descending ? "descending" : "ascending") : "none")
      const button = make("button", { type: "button", textContent: column.title, title: "Sort by " + column.title })
      button.append(icon(mine ? (mount.sort.descending ? "arrow_downward" : "arrow_upward") : "swap_vert"))
      button.onclick = () => {
        mount.sort = { title: column.title, descending: mine && !mount.sort.descending }
        mount.order = sortedIds(mount)
        drawTable(mount)
      }
      cell.append(button)
      return cell
    }),
  )
  if (focused >= 0) head.children[focused]?.querySelector("button").focus()
}

function drawRow(mount, row, run, columns, position) {
  row.classList.toggle("away", !isShown(mount, run.id))
  while (row.children.length > columns.length) row.lastChild.remove()
  columns.forEach((column, place) => {
    const cell = row.children[place] ?? row.appendChild(make(place ? "td" : "th"))
    if (!place) return drawRun(mount, cell, run)
    const best = column.best?.includes(run.id) ?? false
    const text = cellText(column, position), note = column.notes[position] ?? ""
    const signature = JSON.stringify([column.kind, text, note, best])
    if (cell.dataset.signature === signature) return
    cell.dataset.signature = signature
    cell.className = column.kind + (best ? " best" : "")
    cell.title = column.kind === "parameter" ? text : ""
    cell.replaceChildren(make("span", { textContent: text }))
    const beside = make("div")
    if (best) beside.append(make("em", {}, icon("star"), "best"))
    if (note) beside.append(make("small", { textContent: note }))
    if (best || note) cell.append(beside)
  })
}

function drawRun(mount, cell, run) {
  const place = groupsOf(mount)?.findIndex((group) => group.ids.includes(run.id)) ?? mount.slots.get(run.id)
  const signature = JSON.stringify([run, place, mount.look.colors])
  if (cell.dataset.signature === signature) return
  cell.dataset.signature = signature
  cell.scope = "row"
  cell.replaceChildren(make("div", {}, swatch(lookOf(place, mount.look.colors)), jobLink(mount, run), lamp(run)))
}

function drawSame(mount) {
  const { same, runs } = mount.data
  const details = mount.section.querySelector("details")
  details.hidden = !same.length
  const number = `${same.length} parameter${same.length === 1 ? "" : "s"}`
  const are = same.length === 1 ? "is" : "are"
  const signature = JSON.stringify([same, runs.length > 1])
  if (details.dataset.signature === signature) return
  details.dataset.signature = signature
  details.querySelector("summary").textContent = runs.length > 1 ? `${number} ${are} the same` : number
  details.querySelector("dl").replaceChildren(
    ...same.map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: valueText(value) }))),
  )
}

// Comma-separated values as RFC 4180 has them. A stranger's text that a spreadsheet would take for a
// formula begins with an apostrophe (OWASP, CSV injection).
function csvText(mount) {
  const { data } = mount
  const columns = columnsOf(data)
  const field = (value) => {
    if (typeof value === "number") return String(value)
    const text = value == null ? "" : String(value)
    const safe = /^[=+\-@\t\r]/.test(text) ? "'" + text : text
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe
  }
  const lines = [["Job", "Name", "State", ...columns.slice(1).map((column) => column.title)]]
  const places = new Map(data.runs.map((run, position) => [run.id, position]))
  for (const id of mount.order) {
    const position = places.get(id)
    const run = data.runs[position]
    lines.push([id, run.name, run.state, ...columns.slice(1).map((column) => column.values[position])])
  }
  return lines.map((line) => line.map(field).join(",") + "\r\n").join("")
}
