// Draws a job's curves with Plotly. Plotly.react with a constant uirevision keeps zoom, pan and the
// legend's choices while points arrive; st.plotly_chart would mount anew at each of them.
// `data`: {script, revision, height, panels: [{title, series: [{name, x, y, color}], best}], summary, empty}

const mounts = new WeakMap()

// JSON has no NaN: null is a gap in the line. Each label says the step of its own point, because the
// losses are measured at different steps.
function traces(panel, look) {
  const drawn = panel.series.map((series) => {
    const color = look.colors[series.color % look.colors.length]
    const few = series.x.length < 80
    return {
      type: "scatter", mode: few ? "lines+markers" : "lines", name: asText(series.name), x: series.x, y: series.y,
      line: { color, width: series.color ? 2.2 : 1.6 }, marker: { color, size: series.x.length === 1 ? 7 : 4 },
      connectgaps: false, hovertemplate: "step %{x:,d}: %{y:.5~g}",
    }
  })
  if (panel.best) {
    const color = look.colors[1 % look.colors.length]
    drawn.push({
      type: "scatter", mode: "markers", name: "Best held-out", x: [panel.best.x], y: [panel.best.y],
      marker: { symbol: "star", size: 13, color, line: { color: look.paper, width: 1.5 } },
      hovertemplate: "step %{x:,d}: %{y:.5~g}",
    })
  }
  return drawn
}

function layout(panel, look, revision, main) {
  const axis = {
    gridcolor: look.line, linecolor: look.line, zeroline: false, automargin: true, tickcolor: look.line,
    tickfont: { color: look.quiet }, spikecolor: look.quiet, spikethickness: 1, spikedash: "solid",
  }
  return {
    uirevision: revision, autosize: true, hovermode: "x", showlegend: main,
    dragmode: touch() ? false : "zoom",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: look.font, color: look.text, size: main ? 12 : 11 },
    margin: { l: 8, r: 12, t: main ? 34 : 8, b: 8 },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: look.quiet, activecolor: look.text },
    hoverlabel: { bgcolor: look.paper, bordercolor: look.line, font: { color: look.text } },
    xaxis: { ...axis, title: main ? { text: "step", standoff: 4, font: { color: look.quiet } } : undefined,
      rangemode: "tozero", hoverformat: ",d", nticks: main ? undefined : 5 },
    yaxis: { ...axis, nticks: main ? undefined : 4, exponentformat: "power" },
  }
}

function panelElement(root, position) {
  const existing = root.children[position]
  if (existing) return existing
  const figure = document.createElement("figure")
  figure.className = position ? "signalbox-panel" : "signalbox-panel signalbox-main"
  figure.append(document.createElement("figcaption"), document.createElement("div"))
  root.append(figure)
  return figure
}

function draw(Plotly, mount, data) {
  const look = theme(mount.root)
  const { root } = mount
  while (root.children.length > data.panels.length) {
    mount.observer.unobserve(root.lastChild.lastChild)
    purge(root.lastChild.lastChild)
    root.lastChild.remove()
  }
  data.panels.forEach((panel, position) => {
    const figure = panelElement(root, position)
    const [caption, plot] = figure.children
    caption.textContent = panel.title
    plot.setAttribute("role", "img")
    plot.setAttribute("aria-label", position ? panel.title : data.summary)
    drawing(plot, Plotly.react(plot, traces(panel, look), layout(panel, look, data.revision, position === 0), {
      typesetMath: false, displaylogo: false, displayModeBar: position || touch() ? false : "hover", doubleClick: "reset",
      modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
      toImageButtonOptions: { filename: data.revision, scale: 2 },
    }))
    mount.observer.observe(plot)
  })
}

export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".signalbox-chart")
  const notice = parentElement.querySelector(".signalbox-notice")
  let mount = mounts.get(root)
  if (!mount) {
    mount = { root, observer: new ResizeObserver((entries) => {
      for (const { target } of entries) {
        // A hidden tab has no width, and Plotly throws on it.
        if (target.offsetWidth && target.data) drawing(target, globalThis.Plotly.Plots.resize(target))
      }
    }) }
    mounts.set(root, mount)
  }
  mount.data = data
  const waiting = data.panels.length === 0
  notice.textContent = waiting ? data.empty : ""
  notice.hidden = !waiting
  root.hidden = waiting
  const dark = theme(root).paper + theme(root).text
  if (mount.drawn !== data.version + dark) {
    plotly(data.script).then(
      (Plotly) => {
        if (mount.data !== data || !root.isConnected) return // a newer update is on its way
        mount.drawn = data.version + dark
        draw(Plotly, mount, data)
      },
      () => {
        notice.textContent = "The chart could not be loaded: " + data.script + " did not arrive. The figures beside it are up to date."
        notice.hidden = false
      },
    )
  }
  return () => {
    mount.observer.disconnect()
    for (const figure of root.children) purge(figure.lastChild)
    mounts.delete(root)
  }
}
