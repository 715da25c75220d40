// Returns the elements that the page makes of texts in Markdown, without the attributes of the elements.
async (texts) => {
    const { render } = await import('/page/markdown.js');
    const box = document.createElement('div');
    for (const text of texts) render(box, text);
    for (const found of box.querySelectorAll('.code')) {
        found.replaceWith(Object.assign(document.createElement('pre'), { textContent:
            found.querySelector('span').textContent + ':' + found.querySelector('code').textContent }));
    }
    for (const found of box.querySelectorAll('.table')) found.replaceWith(...found.childNodes);
    return box.innerHTML.replace(/(<\w+) [^>]*>/g, '$1>');
}
