// The button that copies the text that it stands on, wherever it is drawn (details.py).
const SAID_MILLISECONDS = 1500

function copyText(button) {
  const text = button.closest('[class*="st-key-verbatim-"]').querySelector('[data-testid="stText"]')
  const label = button.lastElementChild
  const say = (words) => {
    label.textContent = words
    setTimeout(() => (label.textContent = "Copy"), SAID_MILLISECONDS)
  }
  // A browser that does not let pages write the clipboard, or has none for this address, lets the reader.
  const select = () => {
    getSelection().selectAllChildren(text)
    say("Selected")
  }
  if (!navigator.clipboard) select()
  else navigator.clipboard.writeText(text.innerText).then(() => say("Copied"), select)
}
