;(function (script, first) {
  // In the page's head, before anything that draws: what the charts would have to wait for.
  const shared = (globalThis.__signalbox ??= {})

  // Plotly, once for all charts of a browser page, whatever mounts and unmounts.
  shared.plotly = (url) => {
    shared[url] ??= new Promise((resolve, reject) => {
      const element = document.createElement("script")
      element.src = url
      element.onload = () => (globalThis.Plotly ? resolve(globalThis.Plotly) : reject(new Error("no Plotly")))
      element.onerror = () => {
        element.remove()
        reject(new Error("not loaded"))
      }
      document.head.append(element)
    })
    shared[url].catch(() => delete shared[url]) // so that the next one tries again
    return shared[url]
  }

  // The page's curves are asked for at once. Plotly is not: a chart is sketched first, and where there is none the
  // browser gets ready for one when the page has been there for a while.
  const pause = globalThis.requestIdleCallback ?? setTimeout
  addEventListener("load", () => setTimeout(pause, 2500, () => shared.plotly(script).catch(() => {})))
  if (first === null) return
  const answer = fetch(first).then((found) => (found.ok ? found.json() : null))
  const kept = (shared.prefetched ??= {})
  kept[first] = answer.catch(() => null)
  setTimeout(() => delete kept[first], 15_000) // the reader went elsewhere
})
