"""`massact compare`."""
