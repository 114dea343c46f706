// The table of jobs. Rows are kept by their job's number and brought up to date in place, so that
// focus, selection and scroll stay; what is clicked goes to Python as one trigger, `act`.
// Every text of a stranger is set as textContent.
// `data`: {rows, columns, choices, sort, descending, page, pages, total, first, fresh, gone}

const mounts = new WeakMap()
const kept = { visit: null, selected: new Map() } // outlives a connection that breaks and comes back
const SECOND = 1000
const ROLES = { table: "table", thead: "rowgroup", tbody: "rowgroup", tr: "row", td: "cell" }

function make(tag, className = "", text = null) {
  const element = document.createElement(tag)
  if (className) element.className = className
  if (text !== null) element.textContent = text
  if (ROLES[tag]) element.setAttribute("role", ROLES[tag]) // a card is no longer a row by itself
  return element
}

function icon(name) {
  const element = make("span", "sb-icon", name)
  element.setAttribute("aria-hidden", "true")
  element.translate = false
  return element
}

function button(label, act, name = "") {
  const element = make("button")
  element.type = "button"
  if (name) element.append(icon(name), " ")
  element.append(label)
  element.onclick = act
  return element
}

const ICONS = { pause: "pause", resume: "play_arrow" } // of buttons that would be too wide with their words

const say = (element, text) => { if (element.textContent !== text) element.textContent = text }
const mark = (element, name, value) => {
  if (value === null) element.removeAttribute(name)
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value)
}

const some = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`

// A curve that is about to be looked at is asked for while the finger is still down.
function prefetch(id) {
  const shared = (globalThis.__signalbox ??= {})
  const kept = (shared.prefetched ??= {})
  const url = `/api/training/curve/${id}?bins=1000`
  if (kept[url]) return
  kept[url] = fetch(url).then((answer) => {
    if (!answer.ok) throw new Error(answer.statusText)
    return answer.json()
  })
  kept[url].catch(() => delete kept[url])
  setTimeout(() => delete kept[url], 10 * SECOND) // nobody went there
}

// To another page as by the browser's own buttons, to which Streamlit listens: a click that the server
// hears of has it run this page twice before it turns to the other.
function visit(address) {
  history.pushState(null, "", address)
  dispatchEvent(new PopStateEvent("popstate"))
}

const plain = (event) => event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey

class Table {
  constructor(root) {
    this.root = root
    this.rows = new Map() // by a job's number: its row and the parts of it
    this.anchor = null
    this.build()
    this.clock = setInterval(() => this.tellTimes(), SECOND)
    this.outside = (event) => {
      if (event.target.closest?.(".sb-panel, .sb-opens")) return
      this.close()
    }
    document.addEventListener("pointerdown", this.outside)
  }

  end() {
    clearInterval(this.clock)
    document.removeEventListener("pointerdown", this.outside)
  }

  act(what, more = {}) { this.send("act", { do: what, ...more }) }

  ids() { return [...this.selected.keys()] }

  // What is made once

  build() {
    const top = make("div", "sb-top")
    this.bar = make("div", "sb-bar")
    this.count = make("span", "sb-count sb-quiet")
    this.fresh = button("", () => this.act("show"))
    this.fresh.className = "sb-new"
    this.fresh.hidden = true
    this.opensColumns = button("Columns", () => this.toggle(this.columnsPanel, this.opensColumns), "view_column")
    this.opensColumns.className = "sb-opens"
    this.opensColumns.setAttribute("aria-expanded", "false")
    this.order = make("label", "sb-order", "Order")
    this.orderSelect = make("select")
    this.orderSelect.onchange = () => {
      const [key, way] = this.orderSelect.value.split(" ")
      this.act("sort", { key, descending: way === "down" })
    }
    this.order.append(this.orderSelect)
    this.bar.append(this.count, this.fresh, this.opensColumns, this.order)
    this.columnsPanel = make("div", "sb-panel")
    this.columnsPanel.hidden = true
    this.columnsPanel.setAttribute("role", "group")
    this.columnsPanel.setAttribute("aria-label", "Columns")
    this.buildBulk()
    top.append(this.bar, this.bulk, this.columnsPanel, this.tagPanel)

    this.scroll = make("div", "sb-scroll")
    const table = make("table")
    table.setAttribute("aria-label", "Jobs")
    this.head = make("thead")
    this.body = make("tbody")
    this.body.addEventListener("keydown", (event) => this.walk(event))
    table.append(this.head, this.body)
    this.scroll.append(table)

    this.pager = make("nav", "sb-pages")
    this.pager.setAttribute("aria-label", "Pages")
    this.before = button("Previous", () => this.act("page", { page: this.data.page - 1 }), "chevron_left")
    this.where = make("span", "sb-quiet")
    this.after = button("Next", () => this.act("page", { page: this.data.page + 1 }), "chevron_right")
    this.pager.append(this.before, this.where, this.after)

    this.root.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return
      if (!this.close() && this.selected.size) this.choose([], false, true)
    })
    this.root.replaceChildren(top, this.scroll, this.pager)
  }

  buildBulk() {
    this.bulk = make("div", "sb-bar sb-bulk")
    this.bulk.hidden = true
    this.bulk.setAttribute("role", "group")
    this.bulk.setAttribute("aria-label", "Selected jobs")
    this.bulkCount = make("strong", "sb-count")
    this.bulkCount.setAttribute("role", "status")
    this.cancelAll = button("Cancel", () => this.act("cancel", { ids: this.ids() }), "block")
    this.deleteAll = button("Delete", () => this.act("delete", { ids: this.ids() }), "delete")
    this.compareAll = make("a", "sb-button")
    this.compareAll.append(icon("compare_arrows"), " Compare")
    this.compareAll.onclick = (event) => {
      if (!plain(event)) return
      event.preventDefault()
      this.act("compare", { ids: this.ids() })
    }
    this.opensTags = button("Tag", () => this.toggle(this.tagPanel, this.opensTags), "label")
    this.opensTags.className = "sb-opens"
    this.opensTags.setAttribute("aria-expanded", "false")
    this.starAll = button("Star", () => {
      const starred = [...this.selected.values()].some((row) => !row.starred)
      this.act("star", { ids: this.ids(), starred })
    }, "star")
    const clear = button("Clear", () => this.choose([], false, true))
    this.bulk.append(this.bulkCount, this.cancelAll, this.deleteAll, this.compareAll, this.opensTags, this.starAll, clear)

    this.tagPanel = make("div", "sb-panel sb-tagging")
    this.tagPanel.hidden = true
    this.tagInput = make("input")
    this.tagInput.type = "text"
    this.tagInput.maxLength = 50
    this.tagInput.placeholder = "paper"
    this.tagInput.setAttribute("aria-label", "Tag of the selected jobs")
    const tag = (remove) => {
      const text = this.tagInput.value.trim()
      if (!text) return this.tagInput.focus()
      this.act("tag", { ids: this.ids(), tag: text, remove })
      this.tagInput.value = ""
      this.close()
      this.opensTags.focus()
    }
    this.tagInput.onkeydown = (event) => { if (event.key === "Enter") tag(false) }
    this.tagPanel.append(this.tagInput, button("Add", () => tag(false)), button("Remove", () => tag(true)))
  }

  toggle(panel, opener) {
    const open = panel.hidden
    this.close()
    panel.hidden = !open
    opener.setAttribute("aria-expanded", String(open))
    if (open) panel.querySelector("input")?.focus()
  }

  close() {
    const open = !this.columnsPanel.hidden || !this.tagPanel.hidden
    const opener = this.tagPanel.hidden ? this.opensColumns : this.opensTags
    if (open && this.root.contains(document.activeElement)) opener.focus()
    this.columnsPanel.hidden = this.tagPanel.hidden = true
    this.opensColumns.setAttribute("aria-expanded", "false")
    this.opensTags.setAttribute("aria-expanded", "false")
    return open
  }

  // What is selected

  choose(ids, on, alone = false) {
    if (alone) this.selected.clear()
    for (const id of ids) {
      if (on) this.selected.set(id, this.rows.get(id)?.data ?? {})
      else this.selected.delete(id)
    }
    this.tellSelection()
  }

  clickBox(id, box, shift) {
    const shown = this.data.rows.map((row) => row.id)
    const [from, to] = [shown.indexOf(this.anchor), shown.indexOf(id)].sort((a, b) => a - b)
    this.choose(shift && from >= 0 ? shown.slice(from, to + 1) : [id], box.checked)
    this.anchor = id
  }

  tellSelection() {
    for (const [id, row] of this.rows) {
      const on = this.selected.has(id)
      row.box.checked = on
      row.tr.classList.toggle("sb-selected", on)
    }
    const here = this.data.rows.filter((row) => this.selected.has(row.id)).length
    this.all.checked = here > 0 && here === this.data.rows.length
    this.all.indeterminate = here > 0 && here < this.data.rows.length
    const count = this.selected.size
    if (!count && this.root.contains(document.activeElement) && this.bulk.contains(document.activeElement)) this.all.focus()
    this.bar.hidden = count > 0
    this.bulk.hidden = count === 0
    if (!count) this.tagPanel.hidden = true
    say(this.bulkCount, `${count.toLocaleString("en")} selected`)
    const kept = [...this.selected.values()]
    this.cancelAll.disabled = !kept.some((row) => row.live)
    this.deleteAll.disabled = kept.every((row) => row.live)
    mark(this.compareAll, "href", `/compare?ids=${this.ids().slice(0, 100).join(",")}`)
  }

  // Up and down from box to box, as in a list.
  walk(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key]
    const box = event.target.closest?.(".sb-check input")
    if (!step || !box) return
    const boxes = [...this.body.querySelectorAll(".sb-check input")]
    boxes[boxes.indexOf(box) + step]?.focus()
    event.preventDefault()
  }

  // What is drawn at each update

  update(data) {
    this.data = data
    if (kept.visit !== data.visit) {
      kept.visit = data.visit
      kept.selected = new Map()
    }
    this.selected = kept.selected // by a job's number: what its row said last
    for (const id of data.gone) this.selected.delete(id)
    const shape = JSON.stringify(data.columns)
    if (shape !== this.shape) this.buildHead(data, shape)
    for (const [key, th] of this.sorts) {
      const on = key === data.sort
      mark(th, "aria-sort", on ? (data.descending ? "descending" : "ascending") : "none")
      say(th.querySelector(".sb-icon"), on && !data.descending ? "arrow_upward" : "arrow_downward")
    }
    mark(this.orderSelect, "data-sort", `${data.sort} ${data.descending ? "down" : "up"}`)
    this.orderSelect.value = this.orderSelect.dataset.sort
    this.updateChoices(data)
    this.updateRows(data)
    const { total, first, rows, fresh, page, pages } = data
    say(this.count, pages > 1 ? `${some(total, "job")}, ${first.toLocaleString("en")} to ${(first + rows.length - 1).toLocaleString("en")} shown` : some(total, "job"))
    say(this.fresh, `${some(fresh, "new job")} · Show`)
    this.fresh.hidden = fresh === 0
    this.pager.hidden = pages < 2
    say(this.where, `Page ${page.toLocaleString("en")} of ${pages.toLocaleString("en")}`)
    this.before.disabled = page <= 1
    this.after.disabled = page >= pages
    this.tellSelection()
    this.tellTimes()
  }

  buildHead(data, shape) {
    this.shape = shape
    this.sorts = new Map()
    for (const row of this.rows.values()) row.tr.remove()
    this.rows.clear()
    const tr = make("tr")
    const check = make("td", "sb-check")
    this.all = make("input")
    this.all.type = "checkbox"
    this.all.setAttribute("aria-label", "Select all jobs on this page")
    this.all.onchange = () => this.choose(this.data.rows.map((row) => row.id), this.all.checked)
    check.append(this.all)
    tr.append(check)
    const head = (title, sort, className, icons = "") => {
      const th = make("th", className)
      th.scope = "col"
      th.setAttribute("role", "columnheader")
      if (sort) {
        const press = button(icons ? "" : title, () => this.act("sort", { key: sort, descending: this.next(sort) }))
        if (icons) press.append(icon(icons))
        else press.append(" ", icon("arrow_downward"))
        mark(press, "aria-label", icons ? title : null)
        press.title = `Sort by ${title.toLowerCase()}`
        th.append(press)
        if (!icons) this.sorts.set(sort, th)
      } else {
        th.textContent = title
      }
      tr.append(th)
    }
    tr.append(make("td", "sb-star"))
    head("State", "status", "sb-state")
    head("Job", "name", "sb-job")
    for (const column of data.columns) head(column.title, column.sort, column.figures ? "sb-figures" : "")
    const acts = make("td", "sb-acts")
    tr.append(acts)
    this.head.replaceChildren(tr)
    const orders = [["id", "Newest first", "down"], ["id", "Oldest first", "up"], ["name", "Name", "up"], ["status", "State", "up"]]
    for (const { sort, title } of data.columns) {
      if (sort && sort !== "id") orders.push([sort, `${title}, largest first`, "down"], [sort, `${title}, smallest first`, "up"])
    }
    this.orderSelect.replaceChildren(...orders.map(([key, title, way]) => {
      const option = make("option", "", title)
      option.value = `${key} ${way}`
      return option
    }))
  }

  // The first click on a figure or a time brings the largest up, on a word the first of the alphabet.
  next(sort) {
    if (this.data.sort === sort) return !this.data.descending
    return !["name", "status", "recipe"].includes(sort)
  }

  updateChoices(data) {
    const shape = JSON.stringify([data.choices, data.columns.map((column) => column.key)])
    if (shape === this.choices) return
    this.choices = shape
    const chosen = new Set(data.columns.map((column) => column.key))
    const focused = document.activeElement?.dataset?.column
    const parts = []
    let group = ""
    for (const { key, title, of } of data.choices) {
      if (of !== group) parts.push(make("h4", "", of))
      group = of
      const label = make("label")
      const box = make("input")
      box.type = "checkbox"
      box.checked = chosen.has(key)
      box.dataset.column = key
      box.onchange = () => {
        const keys = this.data.columns.map((column) => column.key).filter((k) => k !== key)
        this.act("cols", { keys: box.checked ? [...keys, key] : keys })
      }
      label.append(box, title)
      parts.push(label)
    }
    this.columnsPanel.replaceChildren(...parts)
    if (focused) this.columnsPanel.querySelector(`[data-column="${CSS.escape(focused)}"]`)?.focus()
  }

  updateRows(data) {
    const shown = new Set(data.rows.map((row) => row.id))
    for (const [id, row] of this.rows) {
      if (shown.has(id)) continue
      row.tr.remove()
      this.rows.delete(id)
    }
    data.rows.forEach((row, place) => {
      const known = this.rows.get(row.id) ?? this.buildRow(row.id)
      this.updateRow(known, row)
      if (this.selected.has(row.id)) this.selected.set(row.id, row)
      if (this.body.children[place] !== known.tr) this.body.insertBefore(known.tr, this.body.children[place] ?? null)
    })
  }

  buildRow(id) {
    const tr = make("tr")
    const check = make("td", "sb-check")
    const box = make("input")
    box.type = "checkbox"
    let shift = false
    box.onclick = (event) => { shift = event.shiftKey }
    box.onchange = () => this.clickBox(id, box, shift)
    check.append(box)
    const starCell = make("td", "sb-star")
    const star = button("", () => this.act("star", { ids: [id], starred: star.getAttribute("aria-pressed") !== "true" }))
    star.append(icon("star"))
    starCell.append(star)
    const state = make("td", "sb-state")
    const lamp = make("span", "sb-lamp")
    const lampIcon = icon("")
    const word = make("span")
    lamp.append(lampIcon, word)
    state.append(lamp)
    const job = make("th", "sb-job")
    job.scope = "row"
    job.setAttribute("role", "rowheader")
    const link = make("a")
    link.onpointerdown = (event) => { if (plain(event)) prefetch(id) }
    link.onclick = (event) => {
      if (!plain(event)) return
      event.preventDefault()
      visit(link.href)
    }
    const tags = make("span")
    const said = make("div", "sb-said")
    job.append(link, tags, said)
    const cells = new Map()
    tr.append(check, starCell, state, job)
    for (const column of this.data.columns) {
      const td = make("td", column.figures ? "sb-cell sb-figures" : "sb-cell")
      td.dataset.title = column.title
      const value = make("span", "sb-value")
      td.append(value)
      cells.set(column.key, { td, value })
      tr.append(td)
    }
    const acts = make("td", "sb-acts")
    tr.append(acts)
    const row = { tr, box, star, lamp, lampIcon, word, link, tags, said, cells, acts, data: null }
    this.rows.set(id, row)
    return row
  }

  updateRow(row, data) {
    const text = JSON.stringify(data)
    if (row.text === text) return this.updateActs(row, data)
    row.text = text
    row.data = data
    row.tr.classList.toggle("sb-live", data.live)
    mark(row.box, "aria-label", `Select job ${data.id}`)
    mark(row.star, "aria-label", `Star job ${data.id}`)
    mark(row.star, "aria-pressed", data.starred)
    mark(row.lamp, "class", `sb-lamp sb-${data.color}`)
    say(row.lampIcon, data.icon)
    say(row.word, data.word)
    say(row.link, `${data.id} · ${data.name}`)
    mark(row.link, "href", data.href)
    mark(row.link, "title", data.tip)
    const tags = [...data.tags, ...(data.more_tags ? [`+${data.more_tags}`] : [])]
    if (row.tagsShown !== tags.join("\n")) {
      row.tagsShown = tags.join("\n")
      row.tags.replaceChildren(...tags.flatMap((tag) => [" ", make("span", "sb-tag", tag)]))
    }
    say(row.said, data.said)
    row.said.hidden = !data.said
    mark(row.said, "title", data.said || null)
    for (const [key, cell] of Object.entries(data.cells)) this.updateCell(row.cells.get(key), cell)
    this.updateActs(row, data)
  }

  updateCell({ td, value }, cell) {
    td.classList.toggle("sb-empty", cell.text === "–")
    if (cell.time) {
      let time = value.querySelector("time")
      if (!time) {
        time = make("time")
        value.replaceChildren(time)
      }
      mark(time, "datetime", cell.time)
      mark(time, "title", cell.exact)
      return
    }
    if (cell.share === undefined) {
      say(value, cell.text)
      mark(value, "title", cell.text.length > 24 ? cell.text : null)
      return
    }
    if (!value.querySelector(".sb-share")) {
      const track = make("span", "sb-share")
      track.append(make("span"))
      value.replaceChildren(make("span"), track)
    }
    say(value.firstChild, cell.text)
    value.querySelector(".sb-share > span").style.width = `${100 * cell.share}%`
  }

  updateActs(row, data) {
    const shape = data.acts.map((act) => act.do).join()
    if (row.actsShown !== shape) {
      row.actsShown = shape
      const focused = row.acts.contains(document.activeElement)
      row.acts.replaceChildren(...data.acts.map((act) => {
        const one = button(ICONS[act.do] ? "" : act.label, () => {
          one.disabled = true // until the next update: a double click asks once
          this.act(act.do, { ids: [data.id] })
        }, ICONS[act.do])
        return one
      }))
      if (focused) (row.acts.querySelector("button") ?? row.link).focus()
    }
    data.acts.forEach((act, place) => {
      const one = row.acts.children[place]
      one.disabled = Boolean(act.off)
      mark(one, "title", ICONS[act.do] ? `${act.label}. ${act.help}` : act.help)
      mark(one, "aria-label", `${act.label} job ${data.id}`)
    })
  }

  tellTimes() {
    for (const time of this.body.querySelectorAll("time")) say(time, ago(secondsSince(time)))
  }
}

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".signalbox-jobs")
  let table = mounts.get(root)
  if (!table) {
    table = new Table(root)
    mounts.set(root, table)
  }
  table.send = setTriggerValue
  table.update(data)
  return () => {
    mounts.get(root)?.end()
    mounts.delete(root)
  }
}
